"""Keep the local KEKs that the token has unwrapped for this process."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from hsm_kms.wrapping.record import header_of_local

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.wrapping.by_local_kek import LocalKek

MAX_OPENED: Final = 16_384  # local KEKs, of about 1 KB each


class KekCache:
    """Hold a bounded number of local KEKs, the least recently used first.

    Only a local KEK that the token has authenticated may be added: a hostile record
    can then neither enter the cache nor push another local KEK out of it.

    Args:
        most: Largest number of local KEKs.
    """

    def __init__(self, most: int = MAX_OPENED) -> None:
        self._most = most
        self._keks: OrderedDict[bytes, LocalKek] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of local KEKs."""
        return len(self._keks)

    def add(self, kek: LocalKek) -> None:
        """Add a local KEK; evict the least recently used one if there are too many."""
        self._keks[kek.header] = kek
        self._keks.move_to_end(kek.header)
        if len(self._keks) > self._most:
            self._keks.popitem(last=False)

    def find(self, data: bytes, scope: str) -> LocalKek | None:
        """Return the local KEK that a record carries, None if it is not held.

        Args:
            data: The record; it may be any bytes.
            scope: The cluster name under which the local KEK must have been unwrapped.
        """
        header = header_of_local(data)
        kek = self._keks.get(header)
        if kek is None or kek.scope != scope:
            return None
        self._keks.move_to_end(header)
        return kek

    def keep(self, wanted: Callable[[LocalKek], bool]) -> None:
        """Drop every local KEK for which `wanted` returns False."""
        for header, kek in list(self._keks.items()):
            if not wanted(kek):
                del self._keks[header]
