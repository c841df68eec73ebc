"""Record each change of a key's state on this node.

One object serves all engines of a server, one after the other: a configuration on trial
and an engine that leaves record nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from hsm_kms.audit.events import Key
from hsm_kms.clock import when

if TYPE_CHECKING:
    from hsm_kms.audit.port import Audit
    from hsm_kms.ipc.values import Cipher
    from hsm_kms.keys.keyring import Keyring, KeyState
    from hsm_kms.keys.token_key import TokenKey

GONE: Final = "gone"

_Name: TypeAlias = "tuple[str, Cipher]"  # by key_id


class KeyAudit:
    """Remember the states recorded last.

    Args:
        audit: Takes the records.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._known: dict[_Name, tuple[TokenKey, KeyState]] = {}

    def note(self, ring: Keyring) -> None:
        """Record what differs from the keyring before.

        Once the audit is turned on, each key is recorded as if it were new.

        Args:
            ring: The keyring in force.
        """
        if not self._audit.enabled:
            self._known = {}
            return
        now = {(key.key_id, key.cipher): (key, ring.state(key)) for key in ring.keys}
        before, self._known = self._known, now
        for name, (key, state) in before.items():
            if name not in now:
                self._record(key, GONE, state)
        for name, (key, state) in now.items():
            _, old = before.get(name, (None, None))
            if old is not state:
                self._record(key, state.value, old)

    def _record(self, key: TokenKey, state: str, before: KeyState | None) -> None:
        self._audit.record(
            Key(
                key_id=key.key_id,
                state=state,  # type: ignore[arg-type] # a value of KeyState, or GONE
                before=None if before is None else before.value,
                label=key.ref.label,
                cka_id=key.ref.cka_id.hex(),
                generated_on_token=key.born_here,
                activation=when(key.activation) if key.activation else None,
            )
        )
