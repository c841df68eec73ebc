"""How far a migration came, in a file of the user's choice.

It holds names and counts, never what is in an object. It is written before each page
of a list, so a second run begins with the page in which the first one stopped: what
that one had written already is then left as it is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.clock import now
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.state_dir import files

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
MAX_LISTED: Final = 50
"""Refused objects that are named; more are only counted."""


class Outcome(StrEnum):
    """What became of one object."""

    REWRITTEN = "rewritten"
    UP_TO_DATE = "up_to_date"  # stored already as the API server would store it now
    ACCEPTED = "accepted"  # in a dry run
    GONE = "gone"  # deleted meanwhile
    REFUSED = "refused"


class Refused(msgspec.Struct, frozen=True):
    """One object that was not written.

    Args:
        object: namespace/name, or name.
        why: Holds nothing of what is in it.
    """

    object: str
    why: str


class Counts(msgspec.Struct):
    """What became of the objects of one resource.

    Args:
        outcomes: How many of each.
        refusals: Those that were refused; not more than fit in `MAX_LISTED`.
    """

    outcomes: dict[Outcome, int] = {}
    refusals: list[Refused] = []

    @property
    def objects(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())

    def of(self, outcome: Outcome) -> int:
        """How many of one kind."""
        return self.outcomes.get(outcome, 0)

    def add(self, outcome: Outcome) -> None:
        """Count one object."""
        self.outcomes[outcome] = self.of(outcome) + 1


class Scope(msgspec.Struct, frozen=True):
    """What is migrated: a journal of one is no use for another.

    Args:
        server: URL of the API server, as the kubeconfig has it.
        namespace: The only namespace, or None.
        resources: As they were named.
    """

    server: str
    namespace: str | None
    resources: tuple[str, ...]


class Journal(msgspec.Struct):
    """How far a migration came.

    Args:
        scope: What is migrated.
        started: When it began, in seconds since the Unix epoch.
        token: Where the API server goes on with the list of the resource in `at`;
            "" for its beginning.
        at: The resource being migrated; those of `counts` before it are done.
        counts: What became of the objects, by resource.
        version: Of this layout.
    """

    scope: Scope
    started: float
    token: str = ""
    at: str = ""
    counts: dict[str, Counts] = {}
    version: int = VERSION

    @property
    def objects(self) -> int:
        """How many objects are done."""
        return sum(counts.objects for counts in self.counts.values())

    @property
    def listed(self) -> int:
        """How many refused objects are named."""
        return sum(len(counts.refusals) for counts in self.counts.values())

    def of(self, outcome: Outcome) -> int:
        """How many objects ended so."""
        return sum(counts.of(outcome) for counts in self.counts.values())


def begin(scope: Scope) -> Journal:
    """One of a migration that begins now."""
    return Journal(scope=scope, started=now())


def load(path: Path, scope: Scope) -> Journal:
    """The journal in a file, or a new one where there is no file.

    Raises:
        ConfigError: The file is no journal, or one of another migration.
        HsmKmsError: It cannot be read.
    """
    try:
        found = msgspec.json.decode(files.read(path), type=Journal)
    except FileNotFoundError:
        return begin(scope)
    except OSError as error:
        raise HsmKmsError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError:
        raise ConfigError(
            [f"{path} is not what --resume left; remove it to begin again"]
        ) from None
    if found.version != VERSION or found.scope != scope:
        wrong = f"{path} belongs to another cluster, namespace or list of resources"
        raise ConfigError([f"{wrong}; name another file, or remove it to begin again"])
    return found


def save(path: Path, journal: Journal) -> None:
    """Write it, durably.

    Raises:
        HsmKmsError: It cannot be written; what was there still is.
    """
    try:
        files.replace(path, msgspec.json.encode(journal))
    except OSError as error:
        raise HsmKmsError(f"{path} cannot be written: {error.strerror}") from None
