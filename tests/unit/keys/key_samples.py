"""Keys as workers list them, for tests that need no token."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.inventory import Inventory
from hsm_kms.keys.token_key import (
    KeySettings,
    TokenKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "kek"
A, B, C, GONE = ("a" * 26, "b" * 26, "c" * 26, "g" * 26)
NOW = 1_800_000_000.0  # 15 January 2027


def key(fingerprint: str = A, at: float = 0, **changes: object) -> TokenKey:
    """A good key.

    Args:
        fingerprint: 26 characters.
        at: Its activation time.
        changes: Other fields; `suffix` of its key_id, and `cka_id`, also count.
    """
    suffix = f".{changes.pop('suffix')}" if "suffix" in changes else ""
    cka_id = changes.pop("cka_id", fingerprint[:1].encode())
    given = {
        "ref": KeyRef(LABEL, cka_id),
        "fingerprint": fingerprint,
        "key_id": fingerprint + suffix,
        "cipher": Cipher.GCM,
        "mechanism": Mechanism.GCM_CALLER,
        "activation": int(at),
        "violations": (),
        "born_here": True,
    }
    return TokenKey(**(given | changes))


def settings(**changes: object) -> KeySettings:
    """The `keys` section."""
    return KeySettings(**({"label": LABEL} | changes))


@dataclass(frozen=True, eq=False)
class Looker:
    """A worker, as far as the inventory knows it."""

    born: float
    lost: asyncio.Event = field(default_factory=asyncio.Event)


OLD, YOUNG, YOUNGEST = Looker(1.0), Looker(2.0), Looker(3.0)


class Seen(Inventory):
    """An inventory with a short way to note a listing.

    Without a clock of the test's own, each worker counts as started after all misses.
    """

    def __init__(
        self, apart: float = 0.0, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        super().__init__(apart, clock)

    def by(self, worker: Looker, *keys: TokenKey, now: float = 0.0) -> Seen:
        """Note that a worker saw these keys."""
        self.note(worker, KeyListing(keys=keys), now)
        return self
