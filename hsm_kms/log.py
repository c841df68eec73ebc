"""Log each event of hsm-kms and of its libraries as one line on stderr.

No processor here prints the text of an unexpected exception, a local variable,
a source line or a byte string, because any of them may contain a PIN or a key.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import traceback
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from hsm_kms.imports import without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import (
        EventDict,
        FilteringBoundLogger,
        Processor,
        WrappedLogger,
    )


class Origin:
    """Name who logs, where several engines do at once.

    Attributes:
        name: Field `engine` of each event; None if the events speak for the server.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def logged_by(origin: Origin) -> Iterator[None]:
    """Mark the events of this block, and of every task that is started in it.

    Args:
        origin: Who logs; a change of its name counts for all later events.
    """
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


class _Logger:
    """Load structlog for the first event only, because most commands log nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        with without("rich"):  # structlog uses it for tracebacks, which we never print
            import structlog  # noqa: PLC0415
        if not structlog.is_configured():  # it would print to a command's stdout
            configure("warning", "text")
        return getattr(structlog.get_logger(self._name), method)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of a module.

    Until `configure` is called, as in all commands but `serve`, warnings and errors are
    written to stderr as text.

    Args:
        name: The module's `__name__`.
    """
    return cast("FilteringBoundLogger", _Logger(name))


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    form: Literal["json", "text"] = "json",
    stream: TextIO | None = None,
) -> None:
    """Send structlog's and the standard library's events through one renderer.

    Args:
        level: The lowest level that is logged.
        form: JSON objects, or aligned text for people.
        stream: Stream that gets the lines; None for stderr.
    """
    with without("rich"):
        import structlog  # noqa: PLC0415
    number = logging.getLevelNamesMapping()[level.upper()]
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        name_origin,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        trace_without_values,
        sizes_for_bytes,
    ]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer()
                if form == "json"
                else structlog.dev.ConsoleRenderer(colors=False),
            ],
            foreign_pre_chain=[first_line_of_failures, *common],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    for chatty in ("asyncio", "grpc"):  # both log several lines per request at debug
        logging.getLogger(chatty).setLevel(max(number, logging.INFO))


def key_id_hash(key_id: str) -> str:
    """Return the hash by which kube-apiserver's metrics and logs name a key_id."""
    return f"sha256:{hashlib.sha256(key_id.encode()).hexdigest()}"


def name_origin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the engine that logs, unless it speaks for the server."""
    origin = _origin.get()
    if origin is not None and origin.name is not None:
        event["engine"] = origin.name
    return event


def trace_without_values(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> EventDict:
    """Replace `exc_info` by the exception's types and frames, without its text."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["trace"] = describe(error)
    return event


def describe(error: BaseException) -> list[str]:
    """Return type and frames of an exception and of the exceptions that led to it.

    The latest exception comes first. Each is followed by its frames, outermost first.
    """
    lines: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        lines.append(type(at).__qualname__)
        for frame, line in traceback.walk_tb(at.__traceback__):
            code = frame.f_code
            lines.append(f"{code.co_filename}:{line} in {code.co_qualname}")
        at = at.__cause__ or at.__context__
    return lines


def sizes_for_bytes(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> EventDict:
    """Replace byte strings by their size."""
    for name, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[name] = f"<{len(value)} bytes>"
    return event


def first_line_of_failures(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> EventDict:
    """Keep the first line of a message about an exception: asyncio appends reprs."""
    if event.get("exc_info"):
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
