"""May this PIN be tried, and what became of it?

1. A PIN the token rejected is not tried again until the file changes. A process that
   died inside C_Login has used up a try, and there are two.
2. What cannot be remembered is not tried: without a writable state directory only a
   PIN already proven is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.errors import PinRejectedError, PinUnavailableError
from hsm_kms.log import get_logger
from hsm_kms.state_dir.directory import StateCorruptError, StateWriteError
from hsm_kms.state_dir.records import PinIdentity, PinRecord
from hsm_kms.token.pin_file import identify, require_stable

if TYPE_CHECKING:
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.token.pin_file import PinSource

MOST_TRIES: Final = 2
_REPLACE: Final = (
    "put the right PIN into the PIN file, or run `hsm-kms token retry-pin`"
)

_log = get_logger(__name__)


class PinVerdict:
    """What is known about the PIN of one configuration.

    Args:
        source: The PIN, or None where the token wants no login.
        state: Where the verdict is kept.
        retry: Somebody said that the PIN is right now: try it once, whatever was.
    """

    def __init__(
        self, source: PinSource | None, state: StateDir, *, retry: bool = False
    ) -> None:
        self._source = source
        self._state = state
        self._retry = retry
        self._unsaved: PinRecord | None = None

    def check(self) -> None:
        """Find out without a worker whether a login could be tried now.

        Raises:
            PinUnavailableError: There is no PIN to try yet, or it may not be tried.
            PinRejectedError: The token rejected this PIN before.
        """
        if self._source is not None and not self._source.typed:
            self.may_try(identify(self._source.path))

    @property
    def word(self) -> str:
        """What is known about the PIN, in one word."""
        if self._source is None:
            return "none"
        try:
            found = self._source.path.stat()
        except OSError:
            return "absent"
        return self._known(PinIdentity.from_stat(found)).verdict

    def may_try(self, identity: PinIdentity) -> PinRecord:
        """Return what is known about this PIN, if it may be tried.

        Raises:
            PinUnavailableError: It may not be tried yet, or not without being told to.
            PinRejectedError: The token rejected this PIN before.
        """
        record = self._known(identity)
        if record.verdict == "proven":
            return record
        if self._retry:
            return PinRecord(identity=identity)
        if record.verdict == "rejected":
            raise PinRejectedError(
                "the token rejected the PIN in the PIN file",
                function=record.function,
                rv=record.rv,
                hint=_REPLACE,
            )
        if record.verdict == "corrupt":
            raise PinUnavailableError(
                "the record of PIN tries in the state directory is damaged",
                hint="run `hsm-kms token retry-pin` when the PIN is known to be right",
            )
        if record.tries >= MOST_TRIES:
            raise PinRejectedError(
                "two logins with this PIN were broken off; it may have been rejected",
                hint=_REPLACE,
            )
        if not self._state.writable:
            raise PinUnavailableError(
                "an unproven PIN is not tried while its fate cannot be remembered: "
                f"{self._state.open().problem or 'the state directory is back'}"
            )
        require_stable(identity)
        return record

    def _known(self, identity: PinIdentity) -> PinRecord:
        if self._unsaved is not None and self._unsaved.identity == identity:
            return self._unsaved
        return self._state.read_pin(identity)

    def remember(self, record: PinRecord) -> None:
        """Write the verdict; keep it in memory where that fails."""
        try:
            self._state.write_pin(record)
            self._unsaved = None
        except (StateWriteError, StateCorruptError) as error:
            self._unsaved = record
            _log.warning("what became of the PIN is not saved", error=error.sentence)
