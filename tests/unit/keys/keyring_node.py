"""The keyring of a node: keys come and go, and time passes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.trial import PASSED
from hsm_kms.state_dir.directory import StateDir
from tests.unit.keys.key_samples import NOW, OLD, A, B, C, Seen, key, settings

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.keys.token_key import TokenKey

SERIAL = "0123456789abcdef"
FIRST, NEXT, THIRD = key(A, 1), key(B, NOW + 10), key(C, NOW + 20)


class KeyringNode:
    """One node, and what its workers see."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = NOW
        self.serve()

    def serve(self, **keys_section: object) -> KeyringNode:
        """Start the process."""
        section = {"shared": True} | keys_section
        self.state = StateDir(self.directory).open()
        self.keyring = NodeKeyring(settings(**section), self.state, lambda: self.now)
        return self

    async def reads(self, *keys: TokenKey) -> None:
        """The keys were read, by a caller with an event loop of its own."""
        seen = Seen().by(OLD, *keys, now=NOW - 3600)
        await self.keyring.adopt(seen, (), lambda _: PASSED, SERIAL)

    def sees(self, *keys: TokenKey, try_key=lambda _: PASSED) -> KeyringNode:
        """The keys were read."""
        seen = Seen().by(OLD, *keys, now=NOW - 3600)
        asyncio.run(self.keyring.adopt(seen, (), try_key, SERIAL))
        return self

    def after(self, seconds: float) -> KeyringNode:
        """Time passes."""
        self.now += seconds
        return self

    @property
    def current(self) -> str:
        """What v1 encrypts under."""
        return self.keyring.ring.for_encrypt().key_id

    @property
    def announced(self) -> str:
        """What v2 encrypts under."""
        return self.keyring.announced_ring.for_encrypt().key_id

    @property
    def file(self) -> Path:
        """Where the last key is remembered."""
        return self.directory / "last-key.json"

    @property
    def kept(self) -> tuple[str, list[str]]:
        """What the next process would know: the last key_id, and those before."""
        state = StateDir(self.directory)
        return state.last_key().key_id, [e.key_id for e in state.former_keys()]
