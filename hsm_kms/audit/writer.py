"""Write lines in one thread, in the order in which they were given.

1. The event loop never waits for the disk: it puts lines into a queue. If
   `MOST_WAITING` records wait already, a record is lost. Records that no request waits
   for are gathered for a moment, and written at once.
2. Lost records are counted and leave a gap in `seq`. The first loss is logged, and then
   the recovery, which begins with a record `lost`. While records are being lost, that
   record is tried every second, so that recovery needs no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from hsm_kms.audit.events import Lost
from hsm_kms.audit.line import body_of, moment, numbered
from hsm_kms.audit.target import CutError
from hsm_kms.errors import AuditError
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.audit.target import Target

MOST_WAITING: Final = 10_000  # records of about 300 bytes each
MOST_AT_ONCE: Final = 1_000  # in one write
GATHER_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 1.0

HANGS: Final = (
    "see whether the file system of the audit file hangs, or what reads stdout if "
    "audit.stdout is true"
)
BUSY: Final = AuditError(
    f"{MOST_WAITING} audit records wait for a disk that does not answer", hint=HANGS
)

Done: TypeAlias = "asyncio.Future[AuditError | None]"

_log = get_logger(__name__)


class _Record(Struct, frozen=True):  # made faster than a dataclass
    """Hold a record on its way to the file.

    Args:
        body: Its line, without number.
        done: Set when the record is written or lost; None if nobody waits.
    """

    body: bytes
    done: Done | None


_Work: TypeAlias = "_Record | Callable[[], None]"


class RecordWriter:
    """Write records to a target.

    Args:
        target: The target.
        source: See `events.Header`.

    Attributes:
        written: Number of records written.
        error: Why records are being lost; None if they are not.
    """

    def __init__(self, target: Target, source: str) -> None:
        self._source = source
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._overflowed = 0  # changed on the event loop alone
        # All that follows is changed in the thread alone, once there is one.
        self._target = target
        self._counted = 0  # of those that overflowed, how many have their number
        self._seq = self._lost = self._unreported = 0
        self._since = ""
        self._busy_since: float | None = None  # in monotonic time
        self.written = 0
        self.error: AuditError | None = None

    @property
    def lost(self) -> int:
        """Return the number of records that were lost."""
        return self._lost + self._overflowed - self._counted

    @property
    def waiting(self) -> int:
        """Return the number of records that are not written yet."""
        return self._queue.qsize()

    def busy_for(self) -> float:
        """Return the seconds for which the target has not answered; 0 if it has."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def put(self, body: bytes, done: Done | None) -> bool:
        """Write a record soon; return False if it is lost, because too many wait.

        Args:
            body: Its line, without number.
            done: Set when the record is written or lost; None if nobody waits.
        """
        if self._queue.qsize() >= MOST_WAITING:
            self._overflowed += 1
            return False
        self._queue.put(_Record(body, done))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name="audit writer", daemon=True
            )
            self._thread.start()
        return True

    def reopen(self) -> None:
        """Write to the file that has the name now: another program has rotated it."""
        self._do(self._reopen)

    def turn_to(self, target: Target) -> None:
        """Write later records to another target."""
        self._do(lambda: self._turn_to(target))

    async def flush(self) -> None:
        """Wait until every record that was put is written or lost."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._do(lambda: _call(loop, lambda: _release(done)))
        await done

    def _do(self, work: Callable[[], None]) -> None:
        """Do some work between two records: in the thread, once there is one."""
        if self._thread is None:
            work()
        else:
            self._queue.put(work)

    # In the thread

    def _reopen(self) -> None:
        self._target.reopen()

    def _turn_to(self, target: Target) -> None:
        self._target.reopen()  # closes the file
        self._target = target  # its first record says what the one before has lost

    def _serve(self) -> None:
        while True:
            records: list[_Record] = []
            taken = self._taken()
            self._busy_since = time.monotonic()
            for each in taken:
                if isinstance(each, _Record):
                    records.append(each)
                else:
                    self._write(records)
                    records = []
                    each()
            self._write(records)
            self._busy_since = None

    def _taken(self) -> list[_Work]:
        """Return what waits; wait for it, but not long while records are being lost."""
        wait = RETRY_SECONDS if self.error is not None else None
        taken: list[_Work] = []
        with contextlib.suppress(queue.Empty):
            first = self._queue.get(timeout=wait)
            taken.append(first)
            if isinstance(first, _Record) and first.done is None:
                # Nobody waits. To wake this thread for each record would cost a busy
                # server more than the record.
                time.sleep(GATHER_SECONDS)
            while len(taken) < MOST_AT_ONCE:
                taken.append(self._queue.get_nowait())
        return taken

    def _write(self, records: list[_Record]) -> None:
        self._count_overflowed()
        bodies = [each.body for each in records]
        if self._unreported:
            bodies.insert(0, self._lost_body())
        if not bodies:
            return
        first = self._seq + 1
        lines = [numbered(body, first + n) for n, body in enumerate(bodies)]
        done, error = len(lines), None
        try:
            self._target.write(b"".join(lines))
        except CutError as cut:
            done, error = _whole(lines, cut.written), cut.error
        except Exception as bug:  # noqa: BLE001 - a bug must not end the thread
            _log.error("bug while audit records were written", exc_info=bug)
            done, error = 0, AuditError(f"a bug in hsm-kms: {type(bug).__name__}")
        ahead = len(bodies) - len(records)
        # A record `lost` that could not be written is made again, and needs no number.
        self._seq += len(records) + min(ahead, done)
        self._settle(records, ahead, done, error)

    def _count_overflowed(self) -> None:
        missed = self._overflowed - self._counted
        if missed:
            self._counted += missed
            self._seq += missed
            self._lose(missed, BUSY)

    def _lost_body(self) -> bytes:
        reason = str(self.error or BUSY)
        event = Lost(records=self._unreported, since=self._since, reason=reason)
        return body_of(event, self._source)

    def _settle(
        self, records: list[_Record], ahead: int, done: int, error: AuditError | None
    ) -> None:
        """Count what was written and lost, and answer those who wait.

        Args:
            records: Whose lines were to be written.
            ahead: Number of lines before theirs: 1 if `lost` was to be written.
            done: Number of lines that were written.
            error: Why not all were.
        """
        self.written += done
        if ahead and done:
            self._unreported = 0
        written = max(0, done - ahead)
        if error is not None:
            self._lose(len(records) - written, error)
        elif self.error is not None:
            self.error = None
            _log.info("audit records are written again", lost=self._lost)
        waiting = [
            (each.done, None if n < written else error)
            for n, each in enumerate(records)
            if each.done is not None
        ]
        if waiting:
            _call(waiting[0][0].get_loop(), lambda: _answer(waiting))

    def _lose(self, count: int, error: AuditError) -> None:
        if not self._unreported:
            self._since = moment()
        self._unreported += count
        self._lost += count
        if self.error is None:
            _log.error("audit records are being lost", error=error.sentence)
        self.error = error


def _whole(lines: list[bytes], written: int) -> int:
    """Return how many lines are whole in so many bytes."""
    for n, line in enumerate(lines):
        written -= len(line)
        if written < 0:
            return n
    return len(lines)


def _answer(waiting: list[tuple[Done, AuditError | None]]) -> None:
    for done, error in waiting:
        if not done.done():  # its request may have been cancelled
            done.set_result(error)


def _call(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(work)


def _release(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
