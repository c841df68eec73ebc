"""Local KEKs that the token has opened for this process, the latest used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from hsm_kms.wrapping.record import header_of_local

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.wrapping.by_local_kek import LocalKek

MAX_OPENED: Final = 16_384  # about 1 KB each


class KekCache:
    """A bounded store; only what the token has authenticated is put in.

    Args:
        most: How many local KEKs it holds.
    """

    def __init__(self, most: int = MAX_OPENED) -> None:
        self._most = most
        self._keks: OrderedDict[bytes, LocalKek] = OrderedDict()

    def __len__(self) -> int:
        """How many it holds."""
        return len(self._keks)

    def add(self, kek: LocalKek) -> None:
        """Put one in; the one that was not used for longest gives way."""
        self._keks[kek.header] = kek
        self._keks.move_to_end(kek.header)
        if len(self._keks) > self._most:
            self._keks.popitem(last=False)

    def find(self, data: bytes, scope: str) -> LocalKek | None:
        """The local KEK that this record carries, if it is open under this scope.

        Args:
            data: Bytes from anywhere.
            scope: Cluster name.
        """
        header = header_of_local(data)
        kek = self._keks.get(header)
        if kek is None or kek.scope != scope:
            return None
        self._keks.move_to_end(header)
        return kek

    def keep(self, wanted: Callable[[LocalKek], bool]) -> None:
        """Drop all others."""
        for header, kek in list(self._keks.items()):
            if not wanted(kek):
                del self._keks[header]
