"""OpenSC's pkcs11-spy: a record of every call into the module."""

from __future__ import annotations

import re
from pathlib import Path

from tests.harness.softhsm import softhsm_module

_SPIES = (
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
    "/usr/lib64/pkcs11-spy.so",
    "/usr/lib64/pkcs11/pkcs11-spy.so",
)


def spy() -> str:
    """Path of OpenSC's pkcs11-spy."""
    for path in _SPIES:
        if Path(path).exists():
            return path
    raise FileNotFoundError("pkcs11-spy is not installed: run `make test`")


class Spy:
    """What to configure so that each call into SoftHSM leaves a line in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.module = spy()
        self.env = {"PKCS11SPY": softhsm_module(), "PKCS11SPY_OUTPUT": str(file)}

    def count(self, function: str) -> int:
        """How often this function was called, by all processes together."""
        if not self._file.exists():
            return 0
        text = self._file.read_text(errors="replace")
        return len(re.findall(rf"^\d+: {function}$", text, re.MULTILINE))
