"""Keep the progress of a migration in a file of the user's choice.

The file holds names and counts, never the content of an object. It is written before
each page of a list, so a second run resumes with the page in which the first run
stopped. Objects of that page that are up to date are not written again.
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
"""Most refused, and most changed, objects that are named; others are only counted."""


class Outcome(StrEnum):
    """Name the result for one object."""

    REWRITTEN = "rewritten"
    CHANGED = "changed"  # rewritten, and changed by the cluster, not only re-encrypted
    UP_TO_DATE = "up_to_date"  # its stored form would not change
    ACCEPTED = "accepted"  # by a dry run
    GONE = "gone"  # deleted since it was listed
    REFUSED = "refused"
    UNREADABLE = "unreadable"  # the API server cannot decrypt or decode it


class Named(msgspec.Struct, frozen=True):
    """Name one object that was not written, or not only re-encrypted.

    Args:
        object: namespace/name, or name.
        reason: Why it was not written, or the fields that the cluster changed; without
            any content of the object.
    """

    object: str
    reason: str


class Counts(msgspec.Struct):
    """Count the results for the objects of one resource.

    Args:
        outcomes: Number of objects by result.
        refusals: Refused and unreadable objects; at most `MAX_LISTED` in all resources
            together.
        changes: Objects that the cluster changed; at most `MAX_LISTED` likewise.
    """

    outcomes: dict[Outcome, int] = {}
    refusals: list[Named] = []
    changes: list[Named] = []

    @property
    def objects(self) -> int:
        """Return the number of objects."""
        return sum(self.outcomes.values())

    def of(self, outcome: Outcome) -> int:
        """Return the number of objects with one result."""
        return self.outcomes.get(outcome, 0)

    @property
    def failed(self) -> int:
        """Return the number of objects that are stored as before: not re-encrypted."""
        return self.of(Outcome.REFUSED) + self.of(Outcome.UNREADABLE)

    def add(self, outcome: Outcome) -> None:
        """Count one object."""
        self.outcomes[outcome] = self.of(outcome) + 1

    @property
    def unnamed(self) -> tuple[int, int]:
        """Return how many refused, and how many changed objects are not named."""
        changed = self.of(Outcome.CHANGED)
        return self.failed - len(self.refusals), changed - len(self.changes)


class Scope(msgspec.Struct, frozen=True):
    """Say what is migrated; a journal is valid for one scope only.

    Args:
        server: URL of the API server in the kubeconfig.
        namespace: The only namespace to migrate, or None for all.
        resources: The resources as the user named them.
    """

    server: str
    namespace: str | None
    resources: tuple[str, ...]


class Journal(msgspec.Struct):
    """Hold the progress of a migration.

    Args:
        scope: What is migrated.
        started: When the migration began, in seconds since the Unix epoch.
        token: `continue` token for the list of the resource in `at`; "" for the
            beginning of that list.
        at: The resource that is being migrated; those before it in `counts` are done.
        counts: Results by resource.
        skipped: Why a resource was not migrated, or only in part, by its name.
        version: Version of this file format.
    """

    scope: Scope
    started: float
    token: str = ""
    at: str = ""
    counts: dict[str, Counts] = {}
    skipped: dict[str, str] = {}
    version: int = VERSION

    @property
    def objects(self) -> int:
        """Return the number of objects that are done."""
        return sum(counts.objects for counts in self.counts.values())

    def note(self, counts: Counts, outcome: Outcome, named: Named) -> None:
        """Count one object, and name it unless too many are named already.

        Args:
            counts: The counts of its resource, which belong to this journal.
            outcome: CHANGED, REFUSED or UNREADABLE.
            named: The object and the reason.
        """
        changed = outcome is Outcome.CHANGED
        counts.add(outcome)
        every = self.counts.values()
        lists = [each.changes if changed else each.refusals for each in every]
        if sum(map(len, lists)) < MAX_LISTED:
            (counts.changes if changed else counts.refusals).append(named)

    def of(self, outcome: Outcome) -> int:
        """Return the number of objects with one result."""
        return sum(counts.of(outcome) for counts in self.counts.values())


def begin(scope: Scope) -> Journal:
    """Return the journal of a migration that begins now."""
    return Journal(scope=scope, started=now())


def load(path: Path, scope: Scope) -> Journal:
    """Return the journal in a file, or a new journal if there is no file.

    Raises:
        ConfigError: The file is not a journal, or belongs to another migration.
        HsmKmsError: The file cannot be read.
    """
    try:
        found = msgspec.json.decode(files.read(path), type=Journal)
    except FileNotFoundError:
        return begin(scope)
    except OSError as error:
        raise HsmKmsError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError:
        wrong = f"{path} is not a progress file of --resume"
        raise ConfigError([f"{wrong}; give the name of a new file"]) from None
    if found.version != VERSION or found.scope != scope:
        wrong = f"{path} belongs to another cluster, namespace or list of resources"
        raise ConfigError([f"{wrong}; give another file, or remove it to start over"])
    return found


def save(path: Path, journal: Journal) -> None:
    """Write a journal durably.

    Raises:
        HsmKmsError: The file cannot be written; the old one is unchanged.
    """
    try:
        files.replace(path, msgspec.json.encode(journal))
    except OSError as error:
        raise HsmKmsError(f"{path} cannot be written: {error.strerror}") from None
