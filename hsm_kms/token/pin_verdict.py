"""Decide whether a PIN may be tried, and record the result of each try.

1. A PIN that the token rejected is not tried again until the file changes. A process
   that died inside C_Login has used up a try, and a PIN has two.
2. An error that does not say that the PIN is wrong uses up no try. Some tokens may mean
   a wrong PIN by it, so the next try of an unproven PIN waits 5 s, 10 s, ... 5 minutes.
3. A worker that refuses to try the PIN, for instance because the token reports that few
   tries are left, is asked once a minute, or when the file changes.
4. A result that could not be recorded is not risked: without a writable state
   directory only a PIN that is already proven is used.
5. A credential of systemd is a new file at each start of the service, with a content
   that may or may not be new. What rules 1 and 2 say of one file holds for all later
   ones, until the operator vouches for the PIN; what was proven is proven again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from hsm_kms.clock import now
from hsm_kms.errors import PinRejectedError, PinUnavailableError
from hsm_kms.ipc import ckr
from hsm_kms.log import get_logger
from hsm_kms.state_dir.records import PinIdentity, PinRecord
from hsm_kms.state_dir.store import (
    StateCorruptError,
    StateWriteError,
)
from hsm_kms.token.errors import may_mean_wrong_pin
from hsm_kms.token.pin_file import (
    REPLACE,
    REPLACE_CREDENTIAL,
    credential_of,
    identify,
    require_stable,
)

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.token.pin_file import PinSource

MOST_TRIES: Final = 2
FIRST_PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0
REFUSED_SECONDS: Final = 60.0

_log = get_logger(__name__)


class PinVerdict:
    """Keep what is known about the PIN of one configuration.

    Args:
        source: The PIN, or None if the token wants no login.
        state: Where the verdict is recorded.
        retry: The operator vouches for the PIN: try it once, whatever is recorded.
    """

    def __init__(
        self, source: PinSource | None, state: StateDir, *, retry: bool = False
    ) -> None:
        self._source = source
        self._credential = "" if source is None else credential_of(source.path)
        self._cure = REPLACE_CREDENTIAL if self._credential else REPLACE
        self._state = state
        self._retry = retry
        self._unsaved: PinRecord | None = None
        # What a worker refused to try, why, and until when that is believed.
        self._refused: tuple[PinIdentity, PinUnavailableError, float] | None = None

    def check(self) -> None:
        """Find out without a worker if a login could be tried now.

        Raises:
            PinUnavailableError: There is no PIN to try yet, or it may not be tried.
            PinRejectedError: The token rejected this PIN before.
        """
        if self._source is not None and not self._source.typed:
            self._may_try(identify(self._source.path))

    @property
    def word(self) -> str:
        """Say in one word what is known about the PIN."""
        if self._source is None:
            return "none"
        try:
            found = self._source.path.stat()
        except OSError:
            return "absent"
        return self._known(PinIdentity.from_stat(found)).verdict

    # The life of one try; only under the PIN lock of the state directory.

    def begin(self, source: PinSource) -> PinRecord:
        """Record that the PIN is about to be tried, and return what was known before.

        The try is recorded before it is made, so that a crash inside C_Login counts.

        Raises:
            PinUnavailableError: There is no PIN to try yet, or it may not be tried.
            PinRejectedError: The token rejected this PIN before.
        """
        identity = identify(source.path)
        if self._retry:
            self._state.forget_pin(identity, self._credential)
        before = self._may_try(identity)
        if before.verdict != "proven":
            self._state.write_pin(replace(before, tries=before.tries + 1))
        return before

    def refuses_low(self, before: PinRecord) -> bool:
        """Return True if this PIN must not be tried while the token reports few tries.

        A PIN that is proven, or that the operator vouches for, is tried all the same.
        """
        return before.verdict != "proven" and not self._retry

    def accept(self, before: PinRecord) -> None:
        """Record that the token accepted the PIN."""
        if before.verdict != "proven":
            self._record(replace(self._untried(before.identity), verdict="proven"))

    def reject(self, before: PinRecord, error: PinRejectedError) -> None:
        """Record that the token rejected the PIN."""
        self._record(
            replace(
                self._untried(before.identity),
                verdict="rejected",
                tries=before.tries,
                function=error.function,
                rv=error.rv,
            )
        )

    def give_back(self, before: PinRecord) -> None:
        """Give the try back, because the PIN was not tried."""
        if before.verdict != "proven":
            self._record(before)

    def undo(self, before: PinRecord, error: HsmKmsError) -> None:
        """Give the try back, because the token said nothing about the PIN.

        The next try waits if some tokens report a wrong PIN by this error.
        """
        if before.verdict == "proven":
            return
        if isinstance(error, PinUnavailableError):
            until = time.monotonic() + REFUSED_SECONDS
            self._refused = before.identity, error, until
        if may_mean_wrong_pin(error):
            before = replace(
                before,
                inconclusive=before.inconclusive + 1,
                inconclusive_at=now(),
                function=error.function,
                rv=error.rv,
            )
        self._record(before)

    def _may_try(self, identity: PinIdentity) -> PinRecord:
        record = self._known(identity)
        if record.verdict == "proven":
            return record
        if self._retry:
            return self._untried(identity)
        self._require_not_refused(identity)
        if record.verdict == "rejected":
            raise PinRejectedError(
                "the token rejected the PIN in the PIN file",
                function=record.function,
                rv=record.rv,
                hint=self._cure,
            )
        if record.verdict == "corrupt":
            self._require_writable()
            raise PinUnavailableError(
                "the record of PIN tries in the state directory is damaged",
                hint="check that the PIN is right, then run `hsm-kms token retry-pin`",
            )
        if record.tries >= MOST_TRIES:
            raise PinRejectedError(
                "two logins with this PIN were interrupted; it may have been rejected",
                hint=self._cure,
            )
        if _must_wait(record):
            raise PinUnavailableError(
                f"{record.function} returned {_name_of(record.rv)}, which does not say "
                "that the PIN is wrong; the PIN is tried again after a pause",
                function=record.function,
                rv=record.rv,
                hint="see whether the HSM and its client service are up",
            )
        self._require_writable()
        if not self._credential:
            require_stable(identity)
        return record

    def _require_not_refused(self, identity: PinIdentity) -> None:
        if self._refused is None:
            return
        refused, error, until = self._refused
        if refused == identity and time.monotonic() < until:
            raise error.again()

    def _require_writable(self) -> None:
        failure = self._state.failure
        if failure is not None:
            raise PinUnavailableError(
                f"not logging in: a rejected PIN could not be recorded: {failure}",
                hint=failure.hint,
            )

    def _known(self, identity: PinIdentity) -> PinRecord:
        if self._unsaved is not None and self._unsaved.identity == identity:
            return self._unsaved
        return self._state.read_pin(identity, self._credential)

    def _untried(self, identity: PinIdentity) -> PinRecord:
        return PinRecord(identity=identity, credential=self._credential)

    def _record(self, record: PinRecord) -> None:
        """Write the record; keep it in memory if it cannot be written."""
        try:
            self._state.write_pin(record)
            self._unsaved = None
        except (StateWriteError, StateCorruptError) as error:
            self._unsaved = record
            _log.warning("login result not saved", error=error.sentence)


def _must_wait(record: PinRecord) -> bool:
    """Return True while the pause after an inconclusive error lasts.

    A clock that was set back ends the pause.
    """
    if not record.inconclusive:
        return False
    doublings = min(record.inconclusive - 1, 16)
    pause = min(FIRST_PAUSE_SECONDS * 2.0**doublings, LONGEST_PAUSE_SECONDS)
    return 0 <= now() - record.inconclusive_at < pause


def _name_of(rv: int | None) -> str:
    return "no CK_RV" if rv is None else ckr.name(rv)
