"""Remember which object handles of a session stand for which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pkcs11 import Attribute, KeyType

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
        # Survives a listing, which finds the same handles again, but not an error.
        self._computed: dict[tuple[int, int | None], Name] = {}

    def clear(self) -> None:
        """Forget all handles, and what was computed on them."""
        self._keys.clear()
        self._computed.clear()

    def recalled(self) -> Mapping[tuple[int, int | None], Name]:
        """Return the names and fingerprints that were computed, by handles."""
        return dict(self._computed)

    def list_anew(self, label: str | None) -> None:
        """Forget the handles of the keys that a listing is about to find.

        Args:
            label: CKA_LABEL of these keys; None for any.
        """
        for name in [each for each in self._keys if label in {None, each[0].label}]:
            del self._keys[name]

    def add(self, identified: Mapping[Name, Keyed]) -> None:
        """Take the handles that a listing has identified."""
        self._keys |= identified
        self._computed |= {(on.key, on.mac): name for name, on in identified.items()}

    def end_listing(self, label: str | None, identified: Mapping[Name, Keyed]) -> None:
        """Forget what was computed on handles that a whole listing has not found.

        Args:
            label: CKA_LABEL of the keys listed; None for any.
            identified: The handles it has identified.
        """
        found = {(on.key, on.mac) for on in identified.values()}
        for handles, name in list(self._computed.items()):
            if label in {None, name[0].label} and handles not in found:
                del self._computed[handles]

    def check(self, session: int, name: Name, cipher: Cipher) -> None:
        """Have the token show a key; use it only if it was not identified before.

        Args:
            session: CK_SESSION_HANDLE.
            name: Names and fingerprint of the key.
            cipher: What the key is used for.

        Raises:
            WorkerError: There is no such key, or the token failed.
        """
        ref, _, paired = name
        if self._by_cka_id:
            identity.find_by_names(self._c, session, *name[:2], paired=paired)
            return
        found = search.find_keys(self._c, session, ref, KeyType.AES)
        if not found:
            raise identity.no_key(ref)
        computed = {each[0] for each, of in self._computed.items() if of == name}
        handle = next((each for each in found if each in computed), None)
        if handle is None:
            self._keys.pop(name, None)
            self.key(session, name, cipher)
        else:
            search.read(self._c, session, handle, [Attribute.LABEL, Attribute.ID])

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
            self.add({name: on})
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
