"""Decide which local KEKs must exist, and whether Encrypt works without the token.

1. Where a local KEK may wrap, each key in use has one: the current key as last read,
   the key that Status gave last, and a key whose activation time has come.
2. A key becomes current by its time only once it has its local KEK.
3. A local KEK in memory is dropped with the key that wraps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.errors import HsmKmsError, NonceBudgetError, UnknownKeyIdError
from hsm_kms.keys.trial import PASSED, Trial
from hsm_kms.wrapping.by_token import CIPHERS

if TYPE_CHECKING:
    from hsm_kms.config.schema import Apis, ApiV1, ApiV2
    from hsm_kms.keys.keyring import (
        Keyring,
        Pending,
    )
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.wrapping.by_local_kek import LocalKek
    from hsm_kms.wrapping.kek_cache import KekCache
    from hsm_kms.wrapping.local_lifecycle import LocalKeks
    from hsm_kms.wrapping.nonce_budget import NonceBudget


class Standby:
    """Keep Encrypt ready for an outage of the token.

    Args:
        apis: The APIs that are served, and their wrapping modes.
        node_keyring: The keys of this node.
        local: The local KEKs to wrap with.
        opened: The local KEKs in memory.
        budget: How often each KEK has wrapped on this node.
    """

    def __init__(
        self,
        apis: Apis,
        node_keyring: NodeKeyring,
        *,
        local: LocalKeks,
        opened: KekCache,
        budget: NonceBudget,
    ) -> None:
        self._apis = apis
        self._node_keyring = node_keyring
        self._local = local
        self._opened = opened
        self._budget = budget
        self._coming: dict[str, TokenKey] = {}  # by key_id, see `trial`
        self._held: object = None
        self._owns_cache = False

    def adjust(self, apis: Apis) -> None:
        """Go on with other wrapping modes.

        Args:
            apis: The APIs that are served, and their wrapping modes.
        """
        self._apis = apis
        self.keys_changed()

    def own_cache(self) -> None:
        """Drop local KEKs in memory from now on, those of keys that are not held.

        Of several engines that share `opened` only the one in force may drop any.
        """
        self._owns_cache, self._held = True, None
        self.keys_changed()

    def disown_cache(self) -> None:
        """Drop no local KEK in memory any more."""
        self._owns_cache = False

    # Which local KEKs

    @property
    def uses_local(self) -> bool:
        """True if a local KEK may wrap for some API."""
        apis = (self._apis.v2, self._apis.v1)
        return any(api.enabled and api.wrapping != "token" for api in apis)

    def keys_changed(self) -> None:
        """Have local KEKs under the keys in use, and drop those of keys not held."""
        self._coming = {
            key_id: key
            for key_id, key in self._coming.items()
            if any(each.key.name == key.name for each in self._pending)
        }
        self._local.want(self._keys_in_use() if self.uses_local else ())
        ring = self._node_keyring.ring
        if ring is None:
            return
        held = frozenset(ring.keys), ring.settings.retired
        if self._owns_cache and held != self._held:
            self._held = held
            self._opened.keep(lambda kek: _decrypts(ring, kek))

    def trial(self, key: TokenKey) -> Trial:
        """Return PASSED if no local KEK is missing to make `key` current.

        If one is missing, it is created in the background.
        """
        if not self.uses_local or self._local.has(key):
            return PASSED
        self._coming[key.key_id] = key  # maybe beside another whose time has come
        self._local.want(self._keys_in_use())
        return Trial(passed=False, failure=self._local.trouble(key))

    def _keys_in_use(self) -> list[TokenKey]:
        keys = [ring.current for ring in self._rings if ring.current is not None]
        return [*keys, *self._coming.values()]

    @property
    def _rings(self) -> list[Keyring]:
        rings = (self._node_keyring.ring, self._node_keyring.announced_ring)
        return [ring for ring in rings if ring is not None and ring.fault is None]

    @property
    def _pending(self) -> list[Pending]:
        return [each for ring in self._rings for each in ring.pending]

    # Encrypt without the token

    @property
    def in_software(self) -> bool:
        """True if, without the token, Encrypt of some API would be answered now."""
        return any(self._goes_on(api, key) for api, key in self._encrypting)

    @property
    def encrypts_without_token(self) -> bool:
        """True if, without the token, Encrypt of the API with Status would go on.

        That is v2 where v2 is served, else v1.
        """
        return self._goes_on(*self._encrypting[0])

    @property
    def spent(self) -> HsmKmsError | None:
        """Return why the token must not wrap under the current key any more.

        None if the token may wrap, or if a local KEK wraps in its place.
        """
        api, key = self._encrypting[0]
        if key is None or not self._budget.is_spent(key.fingerprint):
            return None
        if api.wrapping == "software" and self._goes_on(api, key):
            return None
        return NonceBudgetError(
            "this node has wrapped under the current key as often as is safe",
            hint="rotate it: hsm-kms keys rotate",
        )

    def _goes_on(self, api: ApiV2 | ApiV1, key: TokenKey | None) -> bool:
        if api.wrapping == "token" or key is None:
            return False
        return self._local.sealer(key) is not None

    @property
    def _encrypting(self) -> list[tuple[ApiV2 | ApiV1, TokenKey | None]]:
        """Return the enabled APIs, v2 first, and the key that each encrypts under."""
        apis, keys = self._apis, self._node_keyring
        both = ((apis.v2, keys.announced_ring), (apis.v1, keys.ring))
        return [
            (api, ring.current if ring is not None else None)
            for api, ring in both
            if api.enabled
        ]


def _decrypts(ring: Keyring, kek: LocalKek) -> bool:
    """Return True if the key that wraps this local KEK is held, and not retired."""
    header = kek.nested.header
    try:
        ring.for_decrypt(header.key_id, CIPHERS[header.algorithm])
    except UnknownKeyIdError:
        return False
    return True
