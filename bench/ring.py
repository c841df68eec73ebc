"""Run servers on tokens with many keys, which list their keys all the time."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common import behind_shim, c_calls
from hsm_kms.clock import now
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.key_id import make_cka_id
from tests.harness.administrator import Generate, change
from tests.harness.token_keys import LABEL
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

INSPECTIONS = 20
LONG = 60.0  # seconds


@contextmanager
def many_keys(directory: Path, number: int) -> Iterator[tuple[Plugin, Shim]]:
    """Yield a server, not started, on a token with so many keys."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        inside = Path(name)
        hsm, plugin, shim = behind_shim(
            inside,
            token={"shared": True, "call_timeout": "30s"},
            health={"interval": "500ms"},
            log={"level": "info"},
        )
        oldest = int(now()) - 100_000
        names = [KeyRef(LABEL, make_cka_id(oldest + each)) for each in range(number)]
        change(hsm, *(Generate(each, template={"PRIVATE": True}) for each in names))
        try:
            # The PIN file must have been still for a while: the command waits for that.
            plugin.cli("keys", "list")
            yield plugin, shim
        finally:
            plugin.close()


def one_inspection(shim: Shim) -> float:
    """Return the C calls of one inspection, which unwraps one canary."""
    looks, calls = shim.calls("C_DecryptInit"), c_calls(shim)
    wait_for(lambda: shim.calls("C_DecryptInit") >= looks + INSPECTIONS, LONG)
    return (c_calls(shim) - calls) / (shim.calls("C_DecryptInit") - looks)
