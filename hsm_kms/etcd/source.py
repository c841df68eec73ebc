"""Define a source of stored objects: a live etcd, a JSON file or a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

DEFAULT_PREFIX: Final = b"/registry/"
"""Default of kube-apiserver's --etcd-prefix, with a slash."""


class EtcdError(HsmKmsError):
    """Raised when not every stored object could be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """Hold one object as etcd holds it.

    Args:
        key: Key of the object, such as /registry/secrets/default/name.
        value: Value of the object, encrypted or not.
    """

    key: bytes
    value: bytes = field(repr=False)


class Source(Protocol):
    """Read stored objects; a context manager that can be iterated once.

    Memory stays bounded for any number and size of objects. Iterating raises EtcdError
    if not every object could be read.
    """

    @property
    def name(self) -> str:
        """Return the name of the source for people: endpoints, or a file."""

    @property
    def prefix(self) -> bytes:
        """Return the prefix of the keys that are read."""

    @property
    def revision(self) -> int | None:
        """Return the revision of etcd that is read; None before anything was read."""

    def __enter__(self) -> Self:
        """Open the source.

        Raises:
            EtcdError: The source cannot be opened.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the source, and remove temporary files."""

    def __iter__(self) -> Iterator[Item]:
        """Yield every object below the prefix, in no particular order."""

    def get(self, key: bytes) -> Item | None:
        """Return the object with this key, below the prefix or not; None if not there.

        Raises:
            EtcdError: The object could not be read.
        """

    def total(self) -> int | None:
        """Return the number of objects; None before that is known."""

    def share(self) -> float | None:
        """Return how much has been read, from 0 to 1; None if that is unknown."""


def end_of(prefix: bytes) -> bytes:
    """Return the `range_end` of KV.Range for all keys that begin with a prefix."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\0"  # to the end
    return stripped[:-1] + bytes([stripped[-1] + 1])
