"""Verify that the token decrypts every wrapped seed and DEK that etcd holds.

1.  Each distinct wrapped key is decrypted once, for any number of objects with it. The
    plaintext is discarded; a digest of the wrapped key is kept in memory.
2.  A wrapped key that cannot be decrypted is counted, and the run goes on. If the token
    fails, the run stops, because nothing is known about the remaining keys.
3.  Values of another provider are counted but not checked. A damaged value that looks
    like one of hsm-kms counts as one that cannot be decrypted.
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
from hsm_kms.etcd.refusals import NOT_A_RECORD
from hsm_kms.etcd.values import Provider, Stored, explain
from hsm_kms.wrapping.record import FINGERPRINT_CHARS, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hsm_kms.etcd.source import Item

MAX_REMEMBERED: Final = 2**20
"""Most wrapped keys whose result is remembered; others may be decrypted again."""

MAX_FAILURES: Final = 1000
"""Most rows of failures, because someone who writes to etcd can invent key_ids."""

NOT_LISTED: Final = "too many reasons to list"

_EXAMPLE_BYTES: Final = 512
_DIGEST_BYTES: Final = 16
_MAX_NAME_CHARS: Final = 256
_KMS: Final = frozenset({Provider.KMS_V1, Provider.KMS_V2})
# Every record begins with version, kind, algorithm, length and fingerprint.
_HEAD: Final = re.compile(
    rb"\x01[\x01-\x04][\x01\x02].([a-z2-7]{%d})" % FINGERPRINT_CHARS, re.DOTALL
)


class Opener(Protocol):
    """Decrypt records; `hsm_kms.etcd.token_opener.TokenOpener` does."""

    async def why_not(self, record: Record) -> str:
        """Return why a record cannot be decrypted; "" if it can."""


@dataclass(slots=True, kw_only=True)
class Failure:
    """Count the wrapped keys that cannot be decrypted for one reason.

    Args:
        key_id: The key_id that the values name; "" if none is readable.
        reason: Why they cannot be decrypted.
        example: Key of an object with such a wrapped key, truncated if it is long.
        wrapped_keys: Number of such wrapped keys.
        objects: Number of objects with these wrapped keys.
    """

    key_id: str
    reason: str
    example: bytes
    wrapped_keys: int = 0
    objects: int = 0


@dataclass(slots=True, kw_only=True)
class Verdict:
    """Hold the result of a run.

    Args:
        total: Number of objects read.
        objects: Number of these objects with a key that hsm-kms wrapped.
        wrapped_keys: Number of distinct wrapped keys in these objects.
        failed_keys: Number of these wrapped keys that cannot be decrypted.
        failures: The failures, by key_id and reason.
        others: Number of objects of other providers, by provider and its name.
        stopped: Why the remaining objects were not checked, or None.
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
        """Return the number of objects whose wrapped key cannot be decrypted."""
        return sum(failure.objects for failure in self.failures.values())


class Verification:
    """Have every wrapped key decrypted, object by object.

    Args:
        opener: Decrypts records.

    Attributes:
        verdict: The result so far.
    """

    def __init__(self, opener: Opener) -> None:
        self.verdict = Verdict()
        self._opener = opener
        self._known: dict[bytes, Failure | None] = {}

    async def run(
        self, items: Iterable[Item], progress: Callable[[Item], object]
    ) -> Verdict:
        """Check every object, until the token fails.

        Args:
            items: The stored objects; a source.
            progress: Called with each object.

        Raises:
            EtcdError: Not every object could be read.
        """
        for item in items:
            try:
                await self._check(item)
            except HsmKmsError as error:
                self.verdict.stopped = error
                break
            progress(item)
            await asyncio.sleep(0)  # lets the event loop handle Ctrl-C
        return self.verdict

    async def _check(self, item: Item) -> None:
        stored = explain(item.value)
        if not is_ours(stored):
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
                key_id=name[0], reason=name[1], example=key[:_EXAMPLE_BYTES]
            )
        return failures[name]


def _key_id(stored: Stored) -> str:
    """Return the key_id that a value names, even if only its record's start does."""
    if stored.key_id:
        return stored.key_id
    head = _HEAD.match(stored.wrapped or b"")
    return head[1].decode("ascii") if head else ""


def _digest(stored: Stored, value: bytes) -> bytes:
    """Return a digest that is equal for two values with the same result."""
    what = stored.problem.encode() + b"\0" + (stored.wrapped or value)
    return hashlib.sha256(what).digest()[:_DIGEST_BYTES]


def is_ours(stored: Stored) -> bool:
    """Return True if hsm-kms wrote the value, or if its provider is not certain."""
    if stored.provider not in _KMS:
        return False
    if stored.record or stored.other_key_id or stored.problem:
        return True
    named = stored.key_id is not None and KEY_ID.fullmatch(stored.key_id)
    return bool(named or _HEAD.match(stored.wrapped or b""))
