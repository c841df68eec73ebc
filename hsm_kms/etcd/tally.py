"""Count stored objects by resource, provider and key, in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms.config.formats import KEY_ID
from hsm_kms.etcd.resources import resource_of, stored_names
from hsm_kms.etcd.source import DEFAULT_PREFIX, EtcdError, Source
from hsm_kms.etcd.text import printable, text_of
from hsm_kms.etcd.values import Provider, Stored, explain
from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from hsm_kms.etcd.source import Item

MAX_ROWS: Final = 10_000
"""Most rows: someone who writes to etcd can invent key_ids; more count as `others`."""

SENSITIVE: Final = frozenset({"secrets"})
"""Resources that should be encrypted even if no object of them is."""

_MAX_TEXT_CHARS: Final = 256
_MAX_EXAMPLE_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold what the objects have in common that are counted together.

    Args:
        resource: Resource as kubectl names it, such as widgets.example.com.
        provider: Kind of provider that wrote the objects.
        version: "v1" or "v2" as in the prefix; "" if the prefix has none.
        name: Name of the provider, truncated if it is very long.
        key_id: key_id as stored, truncated if it is very long; None if unknown.
        kind: "token", "local KEK", or "" if the record is not one of hsm-kms.
        problem: Why the objects cannot be decrypted, or "".
    """

    resource: str
    provider: Provider
    version: str
    name: str
    key_id: str | None
    kind: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Hold a row with its count.

    Args:
        row: What the objects have in common.
        objects: Number of objects.
        example: Key of one of the objects, truncated if it is very long.
        exposed: True if the objects are unencrypted and should not be.
    """

    row: Row
    objects: int
    example: bytes
    exposed: bool


class Tally:
    """Count objects by what is known of them without a key.

    Args:
        prefix: Prefix of every key.
        watch: key_ids or fingerprints for which `of_key` must be exact, whatever else
            etcd holds.
        resources: Resources that should be encrypted, named as in an
            EncryptionConfiguration, in addition to `SENSITIVE` and to resources of
            which some object is encrypted.

    Attributes:
        total: Number of objects counted.
        others: Number of these objects in no row, because there are `MAX_ROWS` rows.
        unreadable: Number of these objects whose value cannot be parsed.
    """

    def __init__(
        self,
        prefix: bytes = DEFAULT_PREFIX,
        *,
        watch: Collection[str] = (),
        resources: Collection[str] = (),
    ) -> None:
        self.total = 0
        self.others = 0
        self.unreadable = 0
        self._prefix = prefix
        self._named = {each: stored_names(each) for each in resources}
        self._wanted = SENSITIVE.union(*self._named.values())
        self._objects: Counter[Row] = Counter()
        self._examples: dict[Row, bytes] = {}
        self._by_key: dict[str, int] = {_key_of(each): 0 for each in watch}
        self._under_other_keys = 0

    def add(self, item: Item) -> None:
        """Count one object."""
        stored = explain(item.value)
        self.total += 1
        self.unreadable += bool(stored.problem)
        self._count_row(_row(resource_of(item.key, self._prefix), stored), item.key)
        self._count_keys(stored)

    def _count_row(self, row: Row, key: bytes) -> None:
        if row not in self._objects:
            if len(self._objects) >= MAX_ROWS:
                self.others += 1
                return
            self._examples[row] = key[:_MAX_EXAMPLE_BYTES]
        self._objects[row] += 1

    def _count_keys(self, stored: Stored) -> None:
        # If the key_id in a record differs from the key_id beside it, both keys count:
        # the count answers whether it is safe to delete a key.
        named = {stored.key_id, stored.other_key_id} - {None}
        for fingerprint in {_key_of(each) for each in named if each}:
            if fingerprint in self._by_key or len(self._by_key) < MAX_ROWS:
                self._by_key[fingerprint] = self._by_key.get(fingerprint, 0) + 1
            else:
                self._under_other_keys += 1

    def of_key(self, key_id: str) -> int:
        """Return the number of objects that are stored under a key.

        The number is exact for a watched key, and if etcd names at most `MAX_ROWS`
        keys. Otherwise it is the largest number possible.

        Args:
            key_id: A key_id or fingerprint; the suffix is ignored.
        """
        return self._by_key.get(_key_of(key_id), self._under_other_keys)

    def keys(self) -> dict[str, int]:
        """Return the number of objects by key, the most objects first.

        The key is a fingerprint, or the key_id of another provider.
        """
        found = Counter({key: count for key, count in self._by_key.items() if count})
        return dict(found.most_common())

    def resources_of_key(self, key_id: str) -> frozenset[str]:
        """Return the resources of the rows whose objects are stored under a key.

        Args:
            key_id: A key_id or fingerprint; the suffix is ignored.
        """
        wanted = _key_of(key_id)
        return frozenset(
            row.resource
            for row in self._objects
            if row.key_id is not None and _key_of(row.key_id) == wanted
        )

    def encrypted_resources(self) -> frozenset[str]:
        """Return the resources of which some object is encrypted."""
        return frozenset(
            row.resource
            for row in self._objects
            if row.provider is not Provider.IDENTITY
        )

    def without_objects(self) -> list[str]:
        """Return those of the named resources of which no object is in a row."""
        found = {row.resource for row in self._objects}
        return [each for each, names in self._named.items() if not names & found]

    @property
    def unencrypted(self) -> int:
        """Return the number of objects that are unencrypted and should not be."""
        return sum(each.objects for each in self.rows() if each.exposed)

    def rows(self) -> list[Counted]:
        """Return the rows: exposed first, then those with a problem, then by resource.

        Unencrypted objects of resources that need no encryption come last.
        """
        sensitive = self._sensitive()
        counted = [
            Counted(
                row=row,
                objects=objects,
                example=self._examples[row],
                exposed=row.provider is Provider.IDENTITY and row.resource in sensitive,
            )
            for row, objects in self._objects.items()
        ]
        return sorted(counted, key=_rank)

    def _sensitive(self) -> frozenset[str]:
        return self._wanted | self.encrypted_resources()


def scan(
    source: Source,
    progress: Callable[[Item], object] | None = None,
    *,
    watch: Collection[str] = (),
    resources: Collection[str] = (),
) -> Tally:
    """Count every object of a source.

    Args:
        source: The source, open.
        progress: Called with each object.
        watch: As for `Tally`; name here the key that will be deleted.
        resources: As for `Tally`.

    Raises:
        EtcdError: Not every object could be read, or there is no object: an empty scan
            proves nothing.
    """
    tally = Tally(source.prefix, watch=watch, resources=resources)
    for item in source:
        tally.add(item)
        if progress:
            progress(item)
    if tally.total == 0:
        prefix = printable(text_of(source.prefix))
        raise EtcdError(
            f"no object below {prefix!r} in {source.name}",
            hint="--prefix must be the API server's --etcd-prefix and a slash",
        )
    return tally


def _key_of(key_id: str) -> str:
    """Return the fingerprint of a key_id; a foreign key_id is returned unchanged."""
    if KEY_ID.fullmatch(key_id):
        return fingerprint_in(key_id)
    return _cut(key_id)


def _row(resource: str, stored: Stored) -> Row:
    return Row(
        resource=resource,
        provider=stored.provider,
        version=stored.version,
        name=_cut(stored.name),
        key_id=None if stored.key_id is None else _cut(stored.key_id),
        kind=stored.kind,
        problem=stored.problem,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARS else text[:_MAX_TEXT_CHARS] + "..."


def _rank(counted: Counted) -> tuple[int | str, ...]:
    row = counted.row
    if row.provider is Provider.IDENTITY:
        group = 0 if counted.exposed else 3
    else:
        group = 1 if row.problem else 2
    key_id = row.key_id or ""
    return (group, row.resource, row.provider, row.name, key_id, row.kind, row.problem)
