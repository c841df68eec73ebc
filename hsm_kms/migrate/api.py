"""Requests to the API server, made again where that may help.

A request is made again when the API server asks for it (429, 503 with Retry-After),
when it cannot be reached and when a connection breaks: then a PUT may have been done
already, which its resourceVersion turns into a conflict.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable
from hsm_kms.http.client import UnixConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.migrate.kubectl import Proxy

REQUEST_SECONDS: Final = 120.0  # the API server's own limit is 60
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between two tries
_MAX_PAUSE: Final = 30.0
_UNAUTHORIZED: Final = http.HTTPStatus.UNAUTHORIZED
_MAX_TEXT_CHARS: Final = 300

_RIGHTS: Final = (
    "the user of the kubeconfig needs the rights to get, list and update what is "
    "migrated"
)

_T = TypeVar("_T")


class ApiError(HsmKmsError):
    """The API server cannot be reached, or says no to more than one object."""


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """`metadata` of a list and of a Status."""

    token: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class Cause(msgspec.Struct, frozen=True):
    """One fault of an object; its `message` may quote the object, and is not read."""

    field: str = ""


class Details(msgspec.Struct, frozen=True):
    """`details` of a Status."""

    causes: tuple[Cause, ...] = ()


class Status(msgspec.Struct, frozen=True):
    """How the API server says no."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    metadata: ListMeta | None = None
    details: Details | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Args:
        code: The HTTP status.
        body: May hold a Secret.
        retry_after: Seconds that the API server wants to be left alone, or None.
    """

    code: int
    body: bytes = field(repr=False)
    retry_after: float | None = None

    @property
    def status(self) -> Status | None:
        """The Status in it; None where it is something else."""
        try:
            found = msgspec.json.decode(self.body, type=Status)
        except msgspec.MsgspecError:
            return None
        return found if found.kind == "Status" else None

    @property
    def unreached(self) -> bool:
        """Whether kubectl speaks here itself, because it found no API server."""
        return self.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR and not self.status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.unreached or self.code in {429, 502, 503, 504}

    @property
    def text(self) -> str:
        """What the API server or kubectl says; not for answers about one object."""
        status = self.status
        said = status.message if status else self.body.decode(errors="replace")
        return printable(said.strip(), _MAX_TEXT_CHARS)


class Api(Protocol):
    """An API server."""

    def get(self, path: str, **query: str) -> Answer:
        """One GET."""

    def put(self, path: str, body: bytes, **query: str) -> Answer:
        """One PUT of JSON."""


class ProxiedApi:
    """The API server behind a `kubectl proxy`.

    Until it has answered once, nothing is tried twice: a wrong kubeconfig shows at
    once.

    Args:
        proxy: Running.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self, proxy: Proxy, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._proxy = proxy
        self._sleep = sleep
        self._connection = UnixConnection(proxy.socket, REQUEST_SECONDS)
        self._met = False

    def get(self, path: str, **query: str) -> Answer:
        """One GET.

        Raises:
            HsmKmsError: Nobody answers, or only to put us off.
        """
        return self._insist("GET", path, None, query)

    def put(self, path: str, body: bytes, **query: str) -> Answer:
        """One PUT of JSON.

        Raises:
            HsmKmsError: Nobody answers, or only to put us off.
        """
        return self._insist("PUT", path, body, query)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _insist(
        self, method: str, path: str, body: bytes | None, query: dict[str, str]
    ) -> Answer:
        url = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        answer = self._once(method, url, body)
        for pause in _PAUSES if self._met else ():
            # An exec plugin fetches a new token after a 401, for the next request.
            if answer and not answer.passing and answer.code != _UNAUTHORIZED:
                break
            wanted = answer.retry_after if answer else None
            self._sleep(min(wanted or pause, _MAX_PAUSE))
            answer = self._once(method, url, body)
        if answer is None:
            raise ApiError("the connection to the API server breaks again and again")
        if answer.passing:
            raise _put_off(answer)
        if answer.code == _UNAUTHORIZED:
            raise ApiError(
                f"the API server does not accept these credentials: {answer.text}",
                hint="--kubeconfig and --context say whose are used",
            )
        self._met = True
        return answer

    def _once(self, method: str, url: str, body: bytes | None) -> Answer | None:
        """The answer, or None where the connection broke."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            self._connection.request(method, url, body, headers)
            response = self._connection.getresponse()
            return Answer(
                code=response.status,
                body=response.read(),
                retry_after=_seconds(response.headers.get("Retry-After")),
            )
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._proxy.check()
            return None


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[ProxiedApi]:
    """The API server behind a proxy, for as long as it is used."""
    with contextlib.closing(ProxiedApi(proxy)) as api:
        yield api


def decoded(body: bytes, kind: type[_T]) -> _T:
    """What the API server sent, as far as it is looked at here.

    Args:
        body: JSON, which may hold a Secret: an error does not quote it.
        kind: A `msgspec.Struct`.

    Raises:
        ApiError: It is something else.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        raise ApiError("the API server answers in a way unknown here") from None


def refused(what: str, answer: Answer) -> ApiError:
    """The error for an answer that is not OK, to a request about many objects.

    Args:
        what: What the API server does not do, such as "list secrets".
        answer: Its answer.
    """
    if answer.code == http.HTTPStatus.FORBIDDEN:
        return ApiError(f"no right to {what}: {answer.text}", hint=_RIGHTS)
    return ApiError(f"the API server does not {what}: {answer.code} {answer.text}")


def _put_off(answer: Answer) -> ApiError:
    if answer.unreached:
        return ApiError(
            f"kubectl does not reach the API server: {answer.text}",
            hint="see whether `kubectl get --raw /readyz` works",
        )
    return ApiError(f"the API server puts us off: {answer.code} {answer.text}")


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None
