"""A module whose slot numbers a test changes, as a reboot can."""

from __future__ import annotations

from pathlib import Path

from tests.harness.compiled import shared_library
from tests.harness.shim.driver import INCLUDE, require_compiler

SOURCE = Path(__file__).parent / "slots.c"


class Slots:
    """The module, and the number that is added to the slots of the one behind it.

    Args:
        directory: Where the file with the number lives.
        module: The module behind.

    Attributes:
        module: Path of the module.
        env: What `token.env` must have.
    """

    def __init__(self, directory: Path, module: Path) -> None:
        require_compiler()
        self.module = shared_library(SOURCE, "-I", str(INCLUDE), "-ldl")
        self._file = directory / "slots"
        self.env = {
            "HSM_KMS_SLOTS_MODULE": str(module),
            "HSM_KMS_SLOTS": str(self._file),
        }
        self.add(0)

    def add(self, number: int) -> None:
        """Add this to every slot number, in processes that start from now on."""
        self._file.write_text(str(number))
