"""What a source of stored objects is: a live etcd, a file of JSON, a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

DEFAULT_PREFIX: Final = b"/registry/"
"""kube-apiserver's own --etcd-prefix."""


class EtcdError(HsmKmsError):
    """What is stored could not be read, or not all of it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object as etcd holds it.

    Args:
        key: Its key, such as /registry/secrets/default/name.
        value: Its value, in clear or encrypted.
    """

    key: bytes
    value: bytes = field(repr=False)


class Source(Protocol):
    """Where stored objects are read from; a context manager, iterated once.

    Memory stays bounded however many objects there are, and however long. Iterating
    raises EtcdError where not every object could be read.
    """

    @property
    def name(self) -> str:
        """What it reads, for people: endpoints, or a file."""

    @property
    def prefix(self) -> bytes:
        """What the keys that it gives begin with."""

    @property
    def revision(self) -> int | None:
        """As of which revision of etcd; None before anything was read."""

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            EtcdError: It cannot be.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing open, and nothing behind."""

    def __iter__(self) -> Iterator[Item]:
        """Every object below the prefix, in no particular order."""

    def get(self, key: bytes) -> Item | None:
        """The object with this key, wherever it is; None where there is none.

        Raises:
            EtcdError: It could not be read.
        """

    def total(self) -> int | None:
        """How many objects there are; None before that is known."""

    def share(self) -> float | None:
        """How much of it has been read, from 0 to 1; None where nothing tells."""


def end_of(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix, as KV.Range takes it."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\0"  # to the end
    return stripped[:-1] + bytes([stripped[-1] + 1])
