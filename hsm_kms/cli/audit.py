"""Append what an operator's command does to the audit file of the server.

A command records that it begins, and how it ended. With `on_error: refuse` it does
nothing if the first of the two cannot be written.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from hsm_kms.audit.events import Command
from hsm_kms.audit.line import body_of, numbered
from hsm_kms.audit.target import AuditFile, CutError, Stream
from hsm_kms.cli.streams import tell
from hsm_kms.errors import AuditError
from hsm_kms.users import require_service_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hsm_kms.audit.events import CommandName, Event
    from hsm_kms.config import schema

SOURCE: Final = "command"
_UNSET_LOGIN: Final = "4294967295"  # in /proc/self/loginuid, where nobody has logged in
_STDERR: Final = 2


class CommandAudit:
    """Write the records of one command, each before the next step.

    This is an `Audit`.

    Args:
        settings: The section `audit`.
    """

    fault: Final = None

    def __init__(self, settings: schema.Audit) -> None:
        self._settings = settings
        # The server's stdout is not this process's, and its own has the result.
        file = settings.file
        self._target = Stream(_STDERR) if file is None else AuditFile(file)
        self._seq = 0

    @property
    def enabled(self) -> bool:
        """See `Audit.enabled`."""
        return self._settings.enabled

    def record(self, event: Event) -> None:
        """Write a record; print a warning if that fails."""
        try:
            self._write(event)
        except AuditError as error:
            tell(f"warning: an audit record is lost: {error}")

    async def wrote(self, event: Event) -> None:
        """See `Audit.wrote`."""
        self.require(event)

    def require(self, event: Event) -> None:
        """Write a record; if that fails, do as `audit.on_error` says.

        Raises:
            AuditError: It could not be written, and `audit.on_error` is refuse.
        """
        if self._settings.on_error == "refuse":
            self._write(event)
        else:
            self.record(event)

    def _write(self, event: Event) -> None:
        if not self.enabled:
            return
        self._seq += 1
        try:
            self._target.write(numbered(body_of(event, SOURCE), self._seq))
        except CutError as cut:
            raise cut.error from None


@dataclass(slots=True, kw_only=True)
class Subject:
    """Say what a command is about.

    Args:
        key_id: The key; None while it is not known.
        object: Key in etcd of an object; None if there is none.
        destination: Where the object goes; None as above.
        options: The options by which the command does more than usual.
    """

    key_id: str | None = None
    object: str | None = None
    destination: str | None = None
    options: Sequence[str] = ()


def chosen(options: Mapping[str, bool]) -> tuple[str, ...]:
    """Return the options that were given."""
    return tuple(name for name, given in options.items() if given)


@contextlib.contextmanager
def audited(
    config: schema.Config, command: CommandName, subject: Subject | None = None
) -> Iterator[Subject]:
    """Record that a command begins, and how the block ends.

    Args:
        config: The configuration.
        command: The command.
        subject: What it is about.

    Yields:
        The subject, of which the block can set what it finds out.

    Raises:
        WrongUserError: The server of this node runs as another user, who must own the
            audit file.
        AuditError: A record could not be written, and `audit.on_error` is refuse. If
            it was the second, the block has done its work.
    """
    require_service_user(config.state_dir, config.token.pin_file)
    audit = CommandAudit(config.audit)
    subject = subject or Subject()
    audit.require(_event(command, "begun", subject))
    try:
        yield subject
    except BaseException as error:
        audit.record(_event(command, "failed", subject, type(error).__name__))
        raise
    audit.require(_event(command, "done", subject))


def _event(
    command: CommandName,
    phase: Literal["begun", "done", "failed"],
    subject: Subject,
    error: str | None = None,
) -> Command:
    return Command(
        command=command,
        phase=phase,
        key_id=subject.key_id,
        object=subject.object,
        destination=subject.destination,
        options=tuple(subject.options),
        user=os.getuid(),
        login_user=login_uid(),
        error=error,
    )


def login_uid() -> int | None:
    """Return the user who logged in, also behind su or sudo; None if unknown."""
    try:
        found = Path("/proc/self/loginuid").read_text().strip()
    except OSError:
        return None
    return None if found == _UNSET_LOGIN else int(found)
