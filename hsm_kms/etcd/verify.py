"""Whether the token opens every wrapped seed and DEK that etcd holds.

1.  Each distinct wrapped key is opened once, however many objects carry it. What was
    in it is thrown away; that it was opened is kept as a digest, in memory.
2.  What cannot be opened is counted and stops nothing. A token that fails does stop
    it, because then nothing is known of the rest.
3.  What another provider wrote is counted and not vouched for. What looks like ours
    and is not whole counts as ours, and cannot be opened.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.config.formats import KEY_ID
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.values import Provider, Stored, explain
from hsm_kms.wrapping.record import FINGERPRINT_CHARS, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hsm_kms.etcd.source import Item

MAX_REMEMBERED: Final = 2**20
"""Wrapped keys of which it is known how they went; more may be opened again."""

MAX_FAILURES: Final = 1000
"""Rows of what cannot be opened: whoever writes to etcd may invent key_ids."""

NOT_A_RECORD: Final = "the wrapped key is malformed"
NOT_LISTED: Final = "more than can be listed"

_EXAMPLE_BYTES: Final = 512
_DIGEST_BYTES: Final = 16
_MAX_NAME_CHARS: Final = 256
_KMS: Final = frozenset({Provider.KMS_V1, Provider.KMS_V2})
# Version, kind, algorithm, length and fingerprint: how every record of ours begins.
_HEAD: Final = re.compile(
    rb"\x01[\x01-\x04][\x01\x02].([a-z2-7]{%d})" % FINGERPRINT_CHARS, re.DOTALL
)


class Opener(Protocol):
    """Opens records; `hsm_kms.etcd.token_opener.TokenOpener` does."""

    async def why_not(self, record: Record) -> str:
        """Why a record cannot be opened, "" where it can."""


@dataclass(slots=True, kw_only=True)
class Failure:
    """Wrapped keys that cannot be opened, all for one reason.

    Args:
        key_id: That they name; "" where none can be made out.
        why: In words.
        example: The etcd key of an object that carries one, cut where it is long.
        wrapped_keys: How many there are.
        objects: How many objects carry them.
    """

    key_id: str
    why: str
    example: bytes
    wrapped_keys: int = 0
    objects: int = 0


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found.

    Args:
        total: Objects read.
        objects: Those of them that carry a key wrapped by hsm-kms.
        wrapped_keys: Distinct wrapped keys among these.
        failed_keys: Those of them that cannot be opened.
        failures: By key_id and reason.
        others: Objects by other providers, by provider and its name.
        stopped: Why the rest was not looked at, or None.
    """

    total: int = 0
    objects: int = 0
    wrapped_keys: int = 0
    failed_keys: int = 0
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    others: Counter[tuple[Provider, str]] = field(default_factory=Counter)
    stopped: HsmKmsError | None = None

    @property
    def failed_objects(self) -> int:
        """How many objects cannot be opened."""
        return sum(failure.objects for failure in self.failures.values())


class Verification:
    """Has every wrapped key opened, object by object.

    Args:
        opener: Opens them.

    Attributes:
        verdict: What was found so far.
    """

    def __init__(self, opener: Opener) -> None:
        self.verdict = Verdict()
        self._opener = opener
        self._known: dict[bytes, Failure | None] = {}

    async def run(
        self, items: Iterable[Item], progress: Callable[[Item], object]
    ) -> Verdict:
        """Look at every object, until the token fails.

        Args:
            items: What etcd holds; a source.
            progress: Called with each object.

        Raises:
            EtcdError: Not every object could be read.
        """
        for item in items:
            try:
                await self._look_at(item)
            except HsmKmsError as error:
                self.verdict.stopped = error
                break
            progress(item)
            await asyncio.sleep(0)  # a Ctrl-C is heard here
        return self.verdict

    async def _look_at(self, item: Item) -> None:
        stored = explain(item.value)
        if not _ours(stored):
            self.verdict.others[stored.provider, stored.name[:_MAX_NAME_CHARS]] += 1
            self.verdict.total += 1
            return
        digest = _digest(stored, item.value)
        if digest not in self._known:
            failure = await self._open(stored, item.key)
            self.verdict.wrapped_keys += 1
            self.verdict.failed_keys += failure is not None
            if failure:
                failure.wrapped_keys += 1
            if len(self._known) < MAX_REMEMBERED:
                self._known[digest] = failure
        else:
            failure = self._known[digest]
        self.verdict.total += 1
        self.verdict.objects += 1
        if failure:
            failure.objects += 1

    async def _open(self, stored: Stored, key: bytes) -> Failure | None:
        why = stored.problem
        if not why:
            record = stored.record
            why = await self._opener.why_not(record) if record else NOT_A_RECORD
        return self._failure(_key_id(stored), why, key) if why else None

    def _failure(self, key_id: str, why: str, key: bytes) -> Failure:
        failures = self.verdict.failures
        name = key_id[:_MAX_NAME_CHARS], why
        if name not in failures and len(failures) >= MAX_FAILURES:
            name = "", NOT_LISTED
        if name not in failures:
            failures[name] = Failure(
                key_id=name[0], why=name[1], example=key[:_EXAMPLE_BYTES]
            )
        return failures[name]


def _key_id(stored: Stored) -> str:
    """What a value says of its key, be it no more than how its record begins."""
    if stored.key_id:
        return stored.key_id
    head = _HEAD.match(stored.wrapped or b"")
    return head[1].decode("ascii") if head else ""


def _digest(stored: Stored, value: bytes) -> bytes:
    """What two objects have in common that end alike."""
    what = stored.problem.encode() + b"\0" + (stored.wrapped or value)
    return hashlib.sha256(what).digest()[:_DIGEST_BYTES]


def _ours(stored: Stored) -> bool:
    """Whether hsm-kms wrote it, or nobody can tell any more who did."""
    if stored.provider not in _KMS:
        return False
    if stored.record or stored.other_key_id or stored.problem:
        return True
    named = stored.key_id is not None and KEY_ID.fullmatch(stored.key_id)
    return bool(named or _HEAD.match(stored.wrapped or b""))
