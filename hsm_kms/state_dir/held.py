"""Let only the engine in force change what a restarted server would begin with.

A configuration on trial may be rejected, and one that has been replaced must not have
the last word. What their engines would write is held in memory instead, where they read
it again. What is true under every configuration is written at once: whether the token
accepted a PIN, and how often a key has wrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from hsm_kms.state_dir.directory import (
    NONCES_FILE,
    PIN_FILE,
    StateDir,
)

if TYPE_CHECKING:
    from msgspec import Struct

_NEVER_HELD: Final = frozenset({NONCES_FILE, PIN_FILE})

_T = TypeVar("_T")


class HeldStateDir(StateDir):
    """Read a state directory, and hold back what must not be written yet.

    Args:
        state: The state directory, opened; its writer does the work of both.
        holds: False for the first engine, which is in force from the beginning.
    """

    def __init__(self, state: StateDir, *, holds: bool = True) -> None:
        super().__init__(state.path, state.writer)
        self.failure = state.failure
        self._holds = holds
        self._held: dict[str, Struct] = {}  # changed in the writer's thread alone

    def hold(self) -> None:
        """Hold back what is written from now on."""
        self._holds = True

    def release(self) -> None:
        """Write what was held back, and hold back nothing more; see `background`.

        Raises:
            StateWriteError: A file could not be written. It can still be read here,
                and is not written later unless it is saved again.
        """
        self._holds = False
        for name, file in list(self._held.items()):
            self._save(name, file)

    def _load(self, name: str, kind: type[_T]) -> _T | None:
        held = self._held.get(name)
        return held if isinstance(held, kind) else super()._load(name, kind)

    def _save(self, name: str, file: Struct) -> None:
        if self._holds and name not in _NEVER_HELD:
            self._held[name] = file
            return
        super()._save(name, file)
        self._held.pop(name, None)
