"""The frame around every request: parsing, deadline, refusal, its one log event.

1. An `HsmKmsError` becomes the code and the fixed sentence of `codes`, and so does
   a message that cannot be parsed, which grpc would answer with the parser's text.
2. Anything else becomes INTERNAL, and its trace goes to the log without values.
3. A client that gives up cancels the request, and nothing here catches that.
4. One event per request: debug when it went well or was given up, warning when
   it was refused, error when it is a bug of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from hsm_kms.api import codes
from hsm_kms.errors import HsmKmsError, RequestError
from hsm_kms.log import describe, get_logger, key_id_hash

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from grpc.aio import ServicerContext

OBSERVER: Final = "hsm-kms-observer"  # metadata of a client that only looks
MAX_UID_LOGGED: Final = 64  # characters; the API server's UUIDs have 36

_NAME: Final = "hsm_kms.api"
_log = get_logger(_NAME)
_levels = logging.getLogger(_NAME)

# Method, gRPC status code, seconds, path: see `Call.path`.
Observe: TypeAlias = Callable[[str, str, float, str], None]

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def nobody(_method: str, _code: str, _seconds: float, _path: str) -> None:
    """Observe nothing."""


class Call:
    """One request: what its body may ask of it, and what is said of it at its end.

    Args:
        method: API and method for the log, such as "v2.Encrypt".
        context: What grpc hands to the handler.
        observe: Told of each request's method, code, seconds and path.

    Attributes:
        uid: For the log: the client's name for the request, as it came.
        key_id: For the log: set it as soon as it is known.
        path: Where the cryptography was done, see `wrapping.wrapper.Path`; "" while
            none was.
    """

    __slots__ = (
        "_context",
        "_method",
        "_observe",
        "_started",
        "key_id",
        "path",
        "uid",
    )

    def __init__(
        self, method: str, context: ServicerContext[Any, Any], observe: Observe
    ) -> None:
        self._method = method
        self._context = context
        self._observe = observe
        self.uid = self.key_id = self.path = ""
        self._started = perf_counter()

    @property
    def deadline(self) -> float | None:
        """When the client stops waiting, in seconds of the loop's clock."""
        # The stubs of grpc promise a float; without a deadline it is None.
        remaining = cast("float | None", self._context.time_remaining())
        if remaining is None:
            return None
        return asyncio.get_running_loop().time() + remaining

    @property
    def only_looks(self) -> bool:
        """Whether the client says that it will not encrypt."""
        return (OBSERVER, "1") in (self._context.invocation_metadata() or ())

    async def refuse(self, error: Exception) -> NoReturn:
        """End the request with code and sentence for an error.

        Raises:
            AbortError: It is grpc's, which answers the client upon it.
            CancelledError: The client's time is over: grpc has answered by itself.
        """
        code, sentence = codes.refusal(error)
        if isinstance(error, HsmKmsError):
            why = {"error": type(error).__name__, "reason": error.sentence}
            self.event(logging.WARNING, code.name, **why)
        else:
            self.event(logging.ERROR, code.name, trace=describe(error))
        remaining = cast("float | None", self._context.time_remaining())
        if remaining is not None and remaining <= 0:
            raise asyncio.CancelledError
        await self._context.abort(code, sentence)

    def event(self, level: int, code: str, **more: object) -> None:
        """Tell the observer and the log how the request ended."""
        seconds = perf_counter() - self._started
        self._observe(self._method, code, seconds, self.path)
        if not _levels.isEnabledFor(level):
            return
        if self.path:
            more["path"] = self.path
        _log.log(
            level,
            "request",
            method=self._method,
            uid=safe_uid(self.uid),
            key_id_hash=key_id_hash(self.key_id) if self.key_id else "",
            code=code,
            duration_seconds=round(seconds, 6),
            **more,
        )


def handler(
    method: str,
    parse: Callable[[bytes], Request],
    body: Callable[[Request, Call], Awaitable[Response]],
    observe: Observe,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Return what grpc calls for one method.

    Args:
        method: As for `Call`.
        parse: `FromString` of the request's class.
        body: Answers a request or raises; it has the call to read the deadline
            from and to write down what the log should say.
        observe: As for `Call`.
    """

    async def handle(data: bytes, context: ServicerContext[bytes, bytes]) -> bytes:
        call = Call(method, context, observe)
        try:
            try:
                request = parse(data)
            except DecodeError as e:
                raise RequestError("the message cannot be parsed") from e
            answer = (await body(request, call)).SerializeToString()
        except asyncio.CancelledError:
            call.event(logging.DEBUG, "CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001 - a bug is an answer too: INTERNAL
            await call.refuse(error)
        call.event(logging.DEBUG, "OK")
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


def safe_uid(uid: str) -> str:
    """Return a client's uid as it may stand in a log: short, plain, one word."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.:") else "?"
        for c in uid[:MAX_UID_LOGGED]
    )


def require(*, given: int, least: int = 1, most: int, what: str) -> None:
    """Refuse a request of which something has the wrong size.

    Args:
        given: The size it has, in bytes.
        least: The smallest size allowed, in bytes.
        most: The largest size allowed, in bytes.
        what: The field, for the log.

    Raises:
        RequestError: The size is outside these bounds.
    """
    if not least <= given <= most:
        raise RequestError(f"{what} of {given} bytes, allowed are {least} to {most}")
