"""Send requests to the API server, and retry them if that may help.

A request is retried if the API server asks for it (429, 503 with Retry-After), if the
API server cannot be reached, and if the connection breaks. In the last case a PUT may
have been applied already; its resourceVersion then causes a conflict.
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
    "allow the user of the kubeconfig to get, list and update the resources to migrate"
)

_T = TypeVar("_T")


class ApiError(HsmKmsError):
    """Raised when the API server cannot be reached, or refuses more than one object."""


class ResourceError(ApiError):
    """Raised when the API server refuses a request about one resource or API group.

    Another resource may still be migrated.
    """


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Describe `metadata` of a list and of a Status."""

    token: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class Cause(msgspec.Struct, frozen=True):
    """Describe one fault.

    Args:
        field: The field of the object, or the key of an object in etcd.
        message: A message, which may quote the object.
    """

    field: str = ""
    message: str = ""


class Details(msgspec.Struct, frozen=True):
    """Describe `details` of a Status."""

    causes: tuple[Cause, ...] = ()


class Status(msgspec.Struct, frozen=True):
    """Describe the Status with which the API server refuses a request."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    metadata: ListMeta | None = None
    details: Details | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold the response to a request.

    Args:
        code: The HTTP status code.
        body: The body, which may contain a Secret.
        retry_after: Seconds to wait before a retry, as the API server asks; or None.
    """

    code: int
    body: bytes = field(repr=False)
    retry_after: float | None = None

    @property
    def status(self) -> Status | None:
        """Return the Status in the body, or None if the body is something else."""
        try:
            found = msgspec.json.decode(self.body, type=Status)
        except msgspec.MsgspecError:
            return None
        return found if found.kind == "Status" else None

    @property
    def unreached(self) -> bool:
        """Return True if kubectl answered, because it did not reach the API server."""
        return self.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR and not self.status

    @property
    def passing(self) -> bool:
        """Return True if the same request may succeed later."""
        return self.unreached or self.code in {429, 502, 503, 504}

    @property
    def text(self) -> str:
        """Return the message of the API server or kubectl.

        The message may quote an object. It must not be printed if the request was about
        one object.
        """
        status = self.status
        said = status.message if status else self.body.decode(errors="replace")
        return printable(said.strip(), _MAX_TEXT_CHARS)


class Api(Protocol):
    """Send requests to an API server."""

    def get(self, path: str, **query: str) -> Answer:
        """Send a GET and return the response."""

    def put(self, path: str, body: bytes, **query: str) -> Answer:
        """Send a PUT of JSON and return the response."""

    def post(self, path: str, body: bytes) -> Answer:
        """Send a POST of JSON and return the response."""


class ProxiedApi:
    """Send requests to the API server behind a `kubectl proxy`.

    No request is retried before the first response, so that a wrong kubeconfig is
    reported at once.

    Args:
        proxy: The proxy, running.
        sleep: Function that waits for a number of seconds.
    """

    def __init__(
        self, proxy: Proxy, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._proxy = proxy
        self._sleep = sleep
        self._connection = UnixConnection(proxy.socket, REQUEST_SECONDS)
        self._met = False

    def get(self, path: str, **query: str) -> Answer:
        """Send a GET and return the response.

        Raises:
            HsmKmsError: The API server cannot be reached, or asked to retry too often.
        """
        return self._insist("GET", path, None, query)

    def put(self, path: str, body: bytes, **query: str) -> Answer:
        """Send a PUT of JSON and return the response.

        Raises:
            HsmKmsError: The API server cannot be reached, or asked to retry too often.
        """
        return self._insist("PUT", path, body, query)

    def post(self, path: str, body: bytes) -> Answer:
        """Send a POST of JSON and return the response.

        The object must have a name: if a retry follows a POST that was applied, the
        response is a conflict.

        Raises:
            HsmKmsError: The API server cannot be reached, or asked to retry too often.
        """
        return self._insist("POST", path, body, {})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _insist(
        self, method: str, path: str, body: bytes | None, query: dict[str, str]
    ) -> Answer:
        url = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        answer = self._once(method, url, body)
        for pause in _PAUSES if self._met else ():
            # After a 401 an exec plugin fetches a new token, for the next request.
            if answer and not answer.passing and answer.code != _UNAUTHORIZED:
                break
            wanted = answer.retry_after if answer else None
            self._sleep(min(wanted or pause, _MAX_PAUSE))
            answer = self._once(method, url, body)
        if answer is None:
            raise ApiError("the connection to the API server was lost repeatedly")
        if answer.passing:
            raise _put_off(answer)
        if answer.code == _UNAUTHORIZED:
            raise ApiError(
                f"the API server rejected the credentials: {answer.text}",
                hint="choose credentials with --kubeconfig and --context",
            )
        self._met = True
        return answer

    def _once(self, method: str, url: str, body: bytes | None) -> Answer | None:
        """Return the response, or None if the connection broke."""
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
    """Yield a connection to the API server behind a proxy, and close it at the end."""
    with contextlib.closing(ProxiedApi(proxy)) as api:
        yield api


def decoded(body: bytes, kind: type[_T]) -> _T:
    """Decode the fields of a response that are needed.

    Args:
        body: JSON, which may contain a Secret; an error does not quote it.
        kind: A `msgspec.Struct` with these fields.

    Raises:
        ApiError: The body does not have these fields.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        raise ApiError("the API server sent an unexpected response") from None


def refused(what: str, answer: Answer) -> ResourceError:
    """Return the error for a response that is not OK, to a request about many objects.

    Args:
        what: What the API server refused, such as "list secrets".
        answer: The response.
    """
    if answer.code == http.HTTPStatus.FORBIDDEN:
        return ResourceError(f"forbidden to {what}: {answer.text}", hint=_RIGHTS)
    return ResourceError(f"cannot {what}: {answer.code} {answer.text}")


def _put_off(answer: Answer) -> ApiError:
    if answer.unreached:
        return ApiError(
            f"kubectl cannot reach the API server: {answer.text}",
            hint="run `kubectl get --raw /readyz` to check the connection",
        )
    return ApiError(f"the API server is overloaded: {answer.code} {answer.text}")


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None
