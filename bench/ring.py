"""Measure what 1, 10 and 100 keys cost. Needs gcc and libp11-kit-dev.

    .venv/bin/python -m bench.ring

The token is SoftHSM2 behind the fault shim, which counts C calls. Decrypt's figure is
also given as a ratio to the ring of one key in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from hsm_kms.clock import now
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.key_id import make_cka_id
from tests.harness.administrator import Generate, change
from tests.harness.plugin import Plugin
from tests.harness.shim.driver import Shim
from tests.harness.softhsm import PIN, SoftHsm
from tests.harness.token_keys import LABEL
from tests.harness.wait import wait_for

SIZES = (1, 10, 100)
CALLS = 300
LOOKS = 20


def prepare(directory: Path, size: int) -> tuple[Plugin, Shim]:
    """Return a server that lists keys all the time, on a token with so many keys."""
    hsm = SoftHsm(directory / "hsm")
    hsm.init_token()
    pin = directory / "pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    oldest = int(now()) - 100_000
    names = [KeyRef(LABEL, make_cka_id(oldest + each)) for each in range(size)]
    change(hsm, *(Generate(each, template={"PRIVATE": True}) for each in names))
    (directory / "shim").mkdir()
    shim = Shim(directory / "shim")
    plugin = Plugin(directory, hsm, pin)
    plugin.config["token"] |= {
        "module": str(shim.module),
        "shared": True,
        "workers": 1,
        "call_timeout": "30s",
    }
    plugin.config["token"]["env"] |= shim.env
    plugin.config["health"] = {"interval": "500ms"}
    plugin.config["log"] = {"level": "info"}
    plugin.write_config()
    return plugin, shim


def total(shim: Shim) -> int:
    """Return the number of C calls so far."""
    return sum(each.calls for each in shim.counts().values())


def one_look(shim: Shim) -> float:
    """Return the C calls of one inspection, which unwraps one canary."""
    looks, calls = shim.calls("C_DecryptInit"), total(shim)
    wait_for(lambda: shim.calls("C_DecryptInit") >= looks + LOOKS, 60)
    return (total(shim) - calls) / (shim.calls("C_DecryptInit") - looks)


def median(plugin: Plugin, cipher: bytes) -> float:
    """Return the median time of one v1 Decrypt, in milliseconds."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        plugin.v1_decrypt(cipher)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def main() -> None:
    """Measure and print."""
    print("| keys | start to ok (ms) | C calls a look | Decrypt, median (ms) | ratio |")
    print("|---|---|---|---|---|")
    first = 0.0
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as name:
            plugin, shim = prepare(Path(name), size)
            try:
                time.sleep(2.1)  # the PIN file must have been still
                began = time.perf_counter()
                plugin.start().wait_healthz("ok")
                start = (time.perf_counter() - began) * 1000
                calls = one_look(shim)
                taken = median(plugin, plugin.v1_encrypt(b"d" * 32))
                first = first or taken
            finally:
                plugin.close()
        ratio = taken / first
        print(f"| {size} | {start:.0f} | {calls:.0f} | {taken:.2f} | {ratio:.2f} |")


main()
