"""List and identify the keys on a token, page by page.

1. Label, CKA_ID, attributes and fingerprint of a key are read from one handle.
2. The searches are part of the first page, or of several if the token is slow.
3. An error of one key makes that key unidentified, and nothing else, as long as the
   session answers and is logged in.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec
from pkcs11 import Attribute, KeyType

from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.fingerprints import fingerprint_of_cka_id
from hsm_kms.ipc.messages import KeyPage
from hsm_kms.ipc.values import Identify, KeyRef, KeySeen, Problem
from hsm_kms.worker import identity, search
from hsm_kms.worker.attributes import describe
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.mechanisms import Keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hsm_kms.ipc.messages import FindKeys
    from hsm_kms.worker.cryptoki import Cryptoki
    from hsm_kms.worker.handles import Name

_NOTHING: Final[Mapping[tuple[int, int | None], Name]] = MappingProxyType({})
_PAGE_BYTES: Final = 64 * 1024  # the last key of a page may exceed it
# After so long a page ends with the search or the key that is under way: a page takes a
# few C calls at most, however many keys there are, and no hang is suspected.
_PAGE_SECONDS: Final = 0.25

# The operation was refused before it began, so it is not under way on the session.
_REFUSED_AT_ONCE: Final = frozenset({"C_EncryptInit", "C_SignInit"})
_NO_OBJECT: Final = frozenset(
    {ckr.CKR_OBJECT_HANDLE_INVALID, ckr.CKR_KEY_HANDLE_INVALID}
)


class Listing:
    """Describe and identify the objects that one search found, page by page.

    A page leaves out an object that was deleted meanwhile.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE, logged in if the token needs that to show the keys.
        wanted: The keys to search for.
        by_cka_id: A fingerprint names the CKA_ID of a key, not its material.
        needs_login: A session that is not logged in cannot see the keys.
        recalled: The names and fingerprints that were computed on handles before.

    Attributes:
        identified: The handles whose fingerprint was computed, by names, fingerprint,
            and whether it is that of a pair.
        spoiled: An operation may still be under way on the session, which must be
            replaced by a new one.
    """

    def __init__(
        self,
        c: Cryptoki,
        session: int,
        wanted: FindKeys,
        *,
        by_cka_id: bool = False,
        needs_login: bool = True,
        recalled: Mapping[tuple[int, int | None], Name] = _NOTHING,
    ) -> None:
        self._c = c
        self._by_cka_id = by_cka_id
        self._needs_login = needs_login
        self._session = session
        self._wanted = wanted
        self._recalled = recalled if wanted.identify is Identify.ONCE else _NOTHING
        self._kind = KeyType.GENERIC_SECRET if wanted.partners else KeyType.AES
        self._found: list[int] = []
        self._has_partners = False
        self._searches = deque(self._searches_for(wanted))
        self.identified: dict[tuple[KeyRef, str, bool], Keyed] = {}
        self.spoiled = False

    def _searches_for(self, wanted: FindKeys) -> list[Callable[[], None]]:
        labelled: dict[int, bytes] = {}
        if wanted.label is not None and not wanted.prefix:
            labelled[Attribute.LABEL] = wanted.label.encode()
        templates = [{**labelled, Attribute.ID: each} for each in wanted.ids]
        searches: list[Callable[[], None]] = [
            partial(self._search, each) for each in templates or [labelled]
        ]
        if wanted.first is not None:
            searches.append(partial(self._put_first, wanted.first))
        if not wanted.partners:
            searches.append(self._look_for_partners)
        return searches

    def _search(self, template: Mapping[int, bytes]) -> None:
        found = search.find_secret(self._c, self._session, template, self._kind)
        self._found = [*dict.fromkeys([*self._found, *found])]

    def _put_first(self, ref: KeyRef) -> None:
        named = search.find_keys(self._c, self._session, ref, self._kind)
        first = [each for each in named if each in self._found]
        self._found = [*dict.fromkeys([*first, *self._found])]

    def _look_for_partners(self) -> None:
        kind = KeyType.GENERIC_SECRET
        self._has_partners = bool(search.find_secret(self._c, self._session, {}, kind))

    def page(self, skip: int, limit: int) -> KeyPage:
        """Describe the next objects.

        Args:
            skip: Number of objects on the pages before.
            limit: Largest number of objects on this page; the page ends earlier if
                the message would become too long, the token is slow, or the session
                must be replaced by a new one.

        Raises:
            WorkerError: The token could not be searched; or the session does not
                answer, or is not logged in.
        """
        until = time.monotonic() + _PAGE_SECONDS
        while self._searches:
            self._searches[0]()
            self._searches.popleft()  # only now: one that fails is made again
            if self._searches and time.monotonic() > until:
                return KeyPage(keys=(), next=skip)
        keys: list[KeySeen] = []
        room = _PAGE_BYTES
        position = skip
        end = min(skip + limit, len(self._found))
        while position < end and room > 0 and not self.spoiled:
            seen = self._look(self._found[position])
            position += 1
            keys += seen
            room -= sum(len(msgspec.msgpack.encode(each)) for each in seen)
            if time.monotonic() > until:
                break
        more = position < len(self._found)
        return KeyPage(keys=tuple(keys), next=position if more else None)

    def go_on_in(self, session: int) -> None:
        """Describe the remaining objects in another session.

        PKCS#11 makes handles of token objects valid in all sessions of a process;
        another search could find the objects in another order.

        Args:
            session: CK_SESSION_HANDLE.
        """
        self._session = session
        self.identified.clear()
        self.spoiled = False

    def _look(self, handle: int) -> list[KeySeen]:
        """Return the key, once for each HMAC key beside it."""
        try:
            seen = describe(self._c, self._session, handle)
        except WorkerError as error:
            problem = self._problem(error)
            ref = KeyRef("", b"")
            return [KeySeen(ref=ref, value_len=None, attributes={}, problem=problem)]
        if seen is None or not seen.ref.label.startswith(self._wanted.label or ""):
            return []
        if self._wanted.partners or seen.problem is not None:
            return [seen]
        seen = self._identify(seen, Keyed(c=self._c, session=self._session, key=handle))
        if _may_have_gone(seen) and describe(self._c, self._session, handle) is None:
            return []  # deleted since it was described
        pairs = self._pairs(seen, handle) if self._has_partners else []
        return pairs or [seen]

    def _pairs(self, seen: KeySeen, handle: int) -> list[KeySeen]:
        """Return `seen` with each HMAC key that may belong to it."""
        refs = [seen.ref]
        if self._wanted.partner_label is not None:
            refs.append(KeyRef(self._wanted.partner_label, seen.ref.cka_id))
        pairs: list[KeySeen] = []
        for ref in refs:
            for mac in self._partners(ref):
                partner = describe(self._c, self._session, mac)
                if partner is None:
                    continue
                on = Keyed(c=self._c, session=self._session, key=handle, mac=mac)
                partner = self._identify(partner, on, of=seen.ref)
                pairs.append(msgspec.structs.replace(seen, partner=partner))
            if pairs:
                break
        return pairs

    def _partners(self, ref: KeyRef) -> list[int]:
        c, partner = self._c, ref.partner
        return search.find_keys(c, self._session, partner, KeyType.GENERIC_SECRET)

    def _identify(
        self, seen: KeySeen, on: Keyed, *, of: KeyRef | None = None
    ) -> KeySeen:
        """Return the key with its fingerprint, or with what prevents it.

        Args:
            seen: The AES key, or the HMAC key of a pair.
            on: The handles to compute the fingerprint on.
            of: Names of the AES key, if `seen` is an HMAC key.
        """
        if self._wanted.identify is Identify.NEVER:
            return seen
        ref = of or seen.ref
        try:
            if self._by_cka_id:
                return msgspec.structs.replace(seen, fingerprint=self._of_cka_id(ref))
            fingerprint = self._recall(ref, on) or identity.compute(on)
        except WorkerError as error:
            return msgspec.structs.replace(seen, problem=self._problem(error))
        self.identified[ref, fingerprint, on.mac is not None] = on
        return msgspec.structs.replace(seen, fingerprint=fingerprint)

    def _recall(self, ref: KeyRef, on: Keyed) -> str | None:
        """Return the fingerprint that was computed on these handles before, or None."""
        known = self._recalled.get((on.key, on.mac))
        return known[1] if known is not None and known[0] == ref else None

    def _of_cka_id(self, ref: KeyRef) -> str:
        if not ref.cka_id:
            raise WorkerError(Cause.UNNAMED, "it has no CKA_ID")
        same = search.find_keys(self._c, self._session, ref, KeyType.AES)
        identity.the_one(same, ref)
        return fingerprint_of_cka_id(ref.cka_id)

    def _problem(self, error: WorkerError) -> Problem:
        """Return what is wrong with one key.

        Raises:
            WorkerError: It is the session or the token that is at fault.
        """
        if not self._session_answers():
            raise error
        # Some modules leave an operation under way after an error, and refuse the next.
        refused = error.function in _REFUSED_AT_ONCE and (
            error.cause == Fault.OPERATOR or error.rv in _NO_OBJECT
        )
        self.spoiled |= bool(error.function) and not refused
        return error.as_message()

    def _session_answers(self) -> bool:
        try:
            logged_in = self._c.logged_in(self._session)
        except WorkerError:
            return False
        return logged_in or not self._needs_login


def _may_have_gone(seen: KeySeen) -> bool:
    """Return True if the handle of the key was not valid when it was identified."""
    return seen.problem is not None and seen.problem.rv in _NO_OBJECT
