"""Handle what all requests share: parsing, deadline, refusal, and one log event.

1. An `HsmKmsError` is answered with its code and fixed message in `codes`. So is a
   message that cannot be parsed, which gRPC would answer with the parser's text.
2. Any other exception is answered as INTERNAL; the log gets its trace without values.
3. A client that gives up cancels its request, and nothing here catches that.
4. Each request is one log event: debug if it succeeded or its client gave up, warning
   if it was refused, error if the cause is a bug in hsm-kms. Unless debug events are
   logged, refusals of one kind are counted after the first, see `repeats`.
5. Each Encrypt and Decrypt is one audit record. If it must be written and cannot be,
   the client gets no answer but UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from hsm_kms.api import codes
from hsm_kms.audit.events import Request as Audited
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import AuditError, HsmKmsError, RequestError
from hsm_kms.log import describe, get_logger, key_id_hash
from hsm_kms.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from grpc.aio import ServicerContext

    from hsm_kms.audit.port import Audit

OBSERVER: Final = "hsm-kms-observer"  # metadata of a client that only observes
MAX_UID_LOGGED: Final = 64  # characters; the API server's UUIDs have 36

_NAME: Final = "hsm_kms.api"
_log = get_logger(_NAME)
_levels = logging.getLogger(_NAME)

_ODD: Final = re.compile("[^A-Za-z0-9_.:-]")

# Method, gRPC status code, seconds, `Call.path` and `Call.key_id`.
Observe: TypeAlias = Callable[[str, str, float, str, str], None]

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def unobserved(
    _method: str, _code: str, _seconds: float, _path: str, _key_id: str
) -> None:
    """Ignore the request."""


class Call:
    """Hold one request: deadline and origin for its body, outcome for the log.

    Args:
        method: API and method for the log, such as "v2.Encrypt".
        context: The context that gRPC passes to the handler.
        observe: Called with each request's method, code, seconds, path and key_id.
        refusals: Logs the refused requests of this method.
        audit: Records the requests of this method.

    Attributes:
        uid: The client's name for the request, unchecked; for the log.
        key_id: The key of the request, once it is known. Unchecked until the request
            is answered with OK.
        path: What encrypted or decrypted, see `wrapping.wrapper.Path`; "" if nothing
            has yet.
    """

    __slots__ = (
        "_audit",
        "_audited",
        "_context",
        "_method",
        "_observe",
        "_refusals",
        "_started",
        "key_id",
        "path",
        "uid",
    )

    def __init__(
        self,
        method: str,
        context: ServicerContext[Any, Any],
        observe: Observe,
        refusals: Repeats,
        audit: Audit,
    ) -> None:
        self._audit = audit
        self._audited = False
        self._method = method
        self._context = context
        self._observe = observe
        self._refusals = refusals
        self.uid = self.key_id = self.path = ""
        self._started = perf_counter()

    @property
    def deadline(self) -> float | None:
        """Return when the client stops waiting, in the loop's time; None if never."""
        # The stubs of gRPC promise a float, but without a deadline it is None.
        remaining = cast("float | None", self._context.time_remaining())
        if remaining is None:
            return None
        return asyncio.get_running_loop().time() + remaining

    @property
    def only_observes(self) -> bool:
        """Return True if the client says that it will not encrypt."""
        return (OBSERVER, "1") in (self._context.invocation_metadata() or ())

    async def refuse(self, error: Exception) -> NoReturn:
        """End the request with the code and the message of an error.

        Raises:
            AbortError: Always, by gRPC, which then answers the client.
            CancelledError: The deadline has passed: gRPC has answered by itself.
        """
        code, sentence = codes.refusal(error)
        kind = type(error).__name__
        if not isinstance(error, AuditError):
            # The client gets no answer, whether this can be recorded or not.
            try:
                with contextlib.suppress(AuditError):
                    await self.audit(code.name, kind)
            except asyncio.CancelledError:
                self.gave_up()
                raise
        if isinstance(error, HsmKmsError):
            why = {"error": kind, "reason": error.sentence}
            self.event(logging.WARNING, code.name, kind, **why)
        else:
            self.event(logging.ERROR, code.name, kind, trace=describe(error))
        remaining = cast("float | None", self._context.time_remaining())
        if remaining is not None and remaining <= 0:
            raise asyncio.CancelledError
        await self._context.abort(code, sentence)

    async def audit(self, code: str = "OK", kind: str | None = None) -> None:
        """Record how the request is answered.

        Args:
            code: Name of the gRPC status code.
            kind: Class of the error; None if there is none.

        Raises:
            AuditError: It must be recorded and cannot be, so it must be refused.
        """
        if self._audit.enabled:
            self._audited = True
            await self._audit.wrote(self._record(code, kind))

    def gave_up(self) -> None:
        """Report that the client does not wait for an answer any more."""
        if self._audit.enabled and not self._audited:
            self._audit.record(self._record("CANCELLED"))
        self.event(logging.DEBUG, "CANCELLED")

    def _record(self, code: str, kind: str | None = None) -> Audited:
        return Audited(
            method=self._method,  # type: ignore[arg-type] # Encrypt or Decrypt
            uid=safe_word(self.uid) or None,
            key_id=safe_word(self.key_id) or None,
            path=self.path or None,  # type: ignore[arg-type] # see `Call.path`
            code=code,
            error=kind,
            seconds=round(perf_counter() - self._started, 6),
        )

    def event(self, level: int, code: str, kind: str = "", **more: object) -> None:
        """Report to the observer and the log how the request ended.

        Args:
            level: Level of the log event.
            code: Name of the gRPC status code.
            kind: Refusals of the same code and kind are logged once, and then counted.
            more: Fields of the log event.
        """
        seconds = perf_counter() - self._started
        self._observe(self._method, code, seconds, self.path, self.key_id)
        if not _levels.isEnabledFor(level):
            return
        if self.path:
            more["path"] = self.path
        fields = {
            "method": self._method,
            "uid": safe_word(self.uid),
            "key_id_hash": key_id_hash(self.key_id) if self.key_id else "",
            "code": code,
            "duration_seconds": round(seconds, 6),
            **more,
        }
        if _levels.isEnabledFor(logging.DEBUG):
            _log.log(level, "request", **fields)
        else:
            self._refusals.log(level, "request", (code, kind), **fields)


def handler(
    method: str,
    parse: Callable[[bytes], Request],
    body: Callable[[Request, Call], Awaitable[Response]],
    observe: Observe,
    audit: Audit = UNAUDITED,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Return the gRPC handler of one method.

    Args:
        method: As for `Call`.
        parse: `FromString` of the request's class.
        body: Answers a request or raises; reads the deadline from the call, and sets
            the attributes of the call for the log.
        observe: As for `Call`.
        audit: As for `Call`.
    """
    refusals = Repeats(_NAME)

    async def handle(data: bytes, context: ServicerContext[bytes, bytes]) -> bytes:
        call = Call(method, context, observe, refusals, audit)
        try:
            try:
                request = parse(data)
            except DecodeError as e:
                raise RequestError("the message cannot be parsed") from e
            answer = (await body(request, call)).SerializeToString()
            await call.audit()
        except asyncio.CancelledError:
            call.gave_up()
            raise
        except Exception as error:  # noqa: BLE001 - a bug is answered as INTERNAL
            await call.refuse(error)
        call.event(logging.DEBUG, "OK")
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


def safe_word(text: str) -> str:
    """Return a client's text as one short word of plain characters, for the log."""
    return _ODD.sub("?", text[:MAX_UID_LOGGED])


def require(*, given: int, least: int = 1, most: int, what: str) -> None:
    """Refuse a request if one of its fields has the wrong size.

    Args:
        given: Size of the field, in bytes.
        least: Smallest allowed size, in bytes.
        most: Largest allowed size, in bytes.
        what: Name of the field, for the log.

    Raises:
        RequestError: The size is out of bounds.
    """
    if not least <= given <= most:
        raise RequestError(f"{what} has {given} bytes; {least} to {most} are allowed")
