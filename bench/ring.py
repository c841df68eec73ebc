"""Run servers on tokens with many keys, which list their keys all the time."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hsm_kms.clock import now
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.key_id import make_cka_id
from tests.harness.administrator import Generate, change
from tests.harness.plugin import Plugin
from tests.harness.shim.driver import Shim
from tests.harness.softhsm import PIN, SoftHsm
from tests.harness.token_keys import LABEL
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

INSPECTIONS = 20
LONG = 60.0  # seconds


@contextmanager
def many_keys(directory: Path, number: int) -> Iterator[tuple[Plugin, Shim]]:
    """Yield a server, not started, on a token with so many keys."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        inside = Path(name)
        hsm = SoftHsm(inside / "hsm")
        hsm.init_token()
        pin = inside / "pin"
        pin.touch(mode=0o600)
        pin.write_text(PIN)
        oldest = int(now()) - 100_000
        names = [KeyRef(LABEL, make_cka_id(oldest + each)) for each in range(number)]
        change(hsm, *(Generate(each, template={"PRIVATE": True}) for each in names))
        (inside / "shim").mkdir()
        shim = Shim(inside / "shim")
        plugin = Plugin(
            inside,
            hsm,
            pin,
            token={"module": str(shim.module), "shared": True, "call_timeout": "30s"},
            health={"interval": "500ms"},
            log={"level": "info"},
        )
        plugin.config["token"]["env"] |= shim.env
        plugin.write_config()
        try:
            # The PIN file must have been still for a while: the command waits for that.
            plugin.cli("keys", "list")
            yield plugin, shim
        finally:
            plugin.close()


def one_inspection(shim: Shim) -> float:
    """Return the C calls of one inspection, which unwraps one canary."""
    looks, calls = shim.calls("C_DecryptInit"), _total(shim)
    wait_for(lambda: shim.calls("C_DecryptInit") >= looks + INSPECTIONS, LONG)
    return (_total(shim) - calls) / (shim.calls("C_DecryptInit") - looks)


def _total(shim: Shim) -> int:
    """Return the number of C calls so far."""
    return sum(each.calls for each in shim.counts().values())
