"""Remember which object handles of a session stand for which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pkcs11 import KeyType

from hsm_kms.ipc.ckr import Fault
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.worker import identity, mechanisms, search
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.ipc.messages import Decrypt, Destroy, Relabel
    from hsm_kms.worker.mechanisms import Keyed
    from hsm_kms.worker.module import Module

# A canary that the key decrypted, by fingerprint and cipher.
KnownGood: TypeAlias = "dict[tuple[str, Cipher], Decrypt]"
# Names and fingerprint of a key, and whether it is that of a pair.
Name: TypeAlias = tuple[KeyRef, str, bool]


class Handles:
    """Hold the keys that one session has found, each with its computed fingerprint.

    Args:
        module: The module.
        known_good: A canary for each key, shared by all sessions of the process.
    """

    def __init__(self, module: Module, known_good: KnownGood) -> None:
        self._c = module.cryptoki
        self._by_cka_id = module.by_cka_id
        self._known_good = known_good
        self._keys: dict[Name, Keyed] = {}

    def clear(self) -> None:
        """Forget all handles."""
        self._keys.clear()

    def add(self, identified: Mapping[Name, Keyed]) -> None:
        """Take the handles that a listing has identified."""
        self._keys |= identified

    def key(self, session: int, name: Name, cipher: Cipher) -> Keyed:
        """Return the key that has this fingerprint, found once and then remembered.

        Args:
            session: CK_SESSION_HANDLE.
            name: Names and fingerprint of the key.
            cipher: What the key is used for.

        Raises:
            WorkerError: There is no such key, or the token failed.
        """
        on = self._keys.get(name)
        if on is None:
            on = self._find(session, name)
            if self._by_cka_id:
                self._require_same(on, name[1], cipher)
            self._keys[name] = on
        return on

    def object(self, session: int, request: Relabel | Destroy) -> int:
        """Return the handle of the AES key, or of the HMAC key that belongs to it.

        Raises:
            WorkerError: There is none, or several; or it has another fingerprint.
        """
        ref, kind = request.ref, KeyType.AES
        if request.partner:
            ref, kind = ref.partner, KeyType.GENERIC_SECRET
        elif request.fingerprint is not None:
            return self._find(session, (ref, request.fingerprint, False)).key
        return identity.the_one(search.find_keys(self._c, session, ref, kind), ref)

    def _find(self, session: int, name: Name) -> Keyed:
        find = identity.find_by_names if self._by_cka_id else identity.find
        ref, fingerprint, paired = name
        return find(self._c, session, ref, fingerprint, paired=paired)

    def _require_same(self, on: Keyed, fingerprint: str, cipher: Cipher) -> None:
        """Refuse a key that does not decrypt what this process wrapped under it.

        Raises:
            WorkerError: It is another key; or the token failed.
        """
        known = self._known_good.get((fingerprint, cipher))
        if known is None:
            return
        try:
            mechanisms.decrypt(on, cipher, known.aad, known.iv, known.ciphertext)
        except WorkerError as error:
            if error.cause not in {Fault.REQUEST, Fault.AMBIGUOUS}:
                raise
            raise identity.other_key(
                known.ref, "it does not decrypt an earlier canary"
            ) from None
