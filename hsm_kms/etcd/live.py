"""Read a live etcd page by page over gRPC; call nothing but Range and Authenticate.

All pages are read at one revision, so they show what etcd held at one moment. The
number of objects in a page depends on their size, so that neither side needs more than
a few MiB for a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from hsm_kms.etcd.connection import Link, Login, TooLongError, UnreachableError
from hsm_kms.etcd.diagnosis import why_not
from hsm_kms.etcd.endpoint import Endpoint, parse_endpoint
from hsm_kms.etcd.rpc.rpc_pb2 import RangeRequest, RangeResponse
from hsm_kms.etcd.source import DEFAULT_PREFIX, EtcdError, Item, end_of
from hsm_kms.etcd.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

PAGE_BYTES: Final = 2 * 1024**2
"""Size that a page should have."""

MAX_PAGE: Final = 250
"""Most objects in a page: etcd assembles the page in memory, and the next objects may
be far longer than the last ones."""

_FIRST_PAGE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Describe how to connect to an etcd.

    Args:
        cacert: PEM file of the server's CA; None for the CAs of this system.
        cert: PEM file of the client's certificate, or None.
        key: PEM file of the private key for `cert`, or None.
        tls_server_name: Name in the server's certificate; None for the endpoint's host.
        secured: True if an endpoint without a scheme uses TLS also without TLS files.
        login: User and password, or None.
        dial_timeout: Timeout to connect to one endpoint, in seconds.
        command_timeout: Timeout of one request, in seconds.
    """

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls_server_name: str | None = None
    secured: bool = False
    login: Login | None = None
    dial_timeout: float = 2.0
    command_timeout: float = 10.0


class Etcd:
    """Read a live etcd; see `hsm_kms.etcd.source.Source`.

    Args:
        endpoints: Endpoints in the forms that etcdctl accepts; tried in turn.
        access: How to connect; None for no TLS files and no login.
        prefix: Prefix of the keys to read; empty for all keys.

    Raises:
        ConfigError: An endpoint is not valid.
        EtcdError: A file of `access` is not valid.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        access: Access | None = None,
        *,
        prefix: bytes = DEFAULT_PREFIX,
    ) -> None:
        self.prefix = prefix
        self.revision: int | None = None
        self._access = access = access or Access()
        secured = bool(access.secured or access.cacert or access.cert)
        self._endpoints = [parse_endpoint(each, secured=secured) for each in endpoints]
        self._tls = Tls.load(
            access.cacert, access.cert, access.key, access.tls_server_name
        )
        self._link: Link | None = None
        self._cluster: int | None = None
        self._total: int | None = None
        self._done = 0

    @property
    def name(self) -> str:
        """Return the endpoint that is connected, or all endpoints."""
        if self._link:
            return self._link.endpoint.text
        return ", ".join(each.text for each in self._endpoints)

    def __enter__(self) -> Self:
        """Connect to the first endpoint that answers.

        Raises:
            EtcdError: No endpoint answers, or etcd rejected the login.
        """
        self._connect({})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        if self._link:
            self._link.close()
            self._link = None

    def __iter__(self) -> Iterator[Item]:
        """Yield every object below the prefix, at one revision.

        Raises:
            EtcdError: Not every object could be read.
        """
        start, end, limit = self.prefix or b"\0", end_of(self.prefix), _FIRST_PAGE
        more = True
        while more:
            answer, limit = self._page(start, end, limit)
            if self.revision is None:
                self.revision, self._total = answer.header.revision, answer.count
            more = answer.more
            if more:
                start = _next_start(start, answer)
                limit = _next_limit(limit, len(answer.kvs), answer.ByteSize())
            for pair in answer.kvs:
                self._done += 1
                yield Item(pair.key, pair.value)

    def get(self, key: bytes) -> Item | None:
        """Return the object with this key, or None if there is none.

        Raises:
            EtcdError: The object could not be read.
        """
        answer = self._range(RangeRequest(key=key))
        self.revision = answer.header.revision
        return next((Item(pair.key, pair.value) for pair in answer.kvs), None)

    def total(self) -> int | None:
        """Return the number of objects at the revision; None before the first page."""
        return self._total

    def share(self) -> float | None:
        """Return how much has been read, from 0 to 1; None before the first page."""
        if self._total is None:
            return None
        return self._done / max(1, self._total)

    def _page(self, start: bytes, end: bytes, limit: int) -> tuple[RangeResponse, int]:
        """Return a page, and the limit that it was read with: lower if it was long."""
        while True:
            request = RangeRequest(
                key=start, range_end=end, limit=limit, revision=self.revision or 0
            )
            try:
                return self._range(request), limit
            except TooLongError:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)

    def _range(self, request: RangeRequest) -> RangeResponse:
        """Return the response to one request, from any endpoint that answers.

        Raises:
            EtcdError: etcd refused the request, or no endpoint answers.
        """
        failures: dict[Endpoint, EtcdError] = {}
        while True:
            link = self._link or self._connect(failures)
            try:
                answer = link.range(request)
            except UnreachableError as error:
                failures[link.endpoint] = error
                link.close()
                self._link = None
                continue
            self._check_cluster(answer, link.endpoint)
            return answer

    def _check_cluster(self, answer: RangeResponse, endpoint: Endpoint) -> None:
        cluster = answer.header.cluster_id
        if self._cluster not in {None, cluster}:
            raise EtcdError(f"{endpoint.text} belongs to another etcd cluster")
        self._cluster = cluster

    def _connect(self, failures: dict[Endpoint, EtcdError]) -> Link:
        """Connect to the first endpoint that has not failed yet, and log in.

        Raises:
            EtcdError: All endpoints have failed, or etcd rejected the login.
        """
        access = self._access
        for endpoint in self._endpoints:
            if endpoint in failures:
                continue
            link = Link(endpoint, self._tls, access.login, access.command_timeout)
            try:
                if link.connects(access.dial_timeout):
                    link.log_in()
                    self._link = link
                    return link
                cause = why_not(endpoint, self._tls, access.dial_timeout)
                failures[endpoint] = cause or EtcdError("no answer")
            except UnreachableError as error:
                failures[endpoint] = error
            finally:
                if self._link is not link:
                    link.close()
        raise _none_answers(failures)


def _none_answers(failures: dict[Endpoint, EtcdError]) -> UnreachableError:
    causes = [f"{endpoint.text}: {error}" for endpoint, error in failures.items()]
    hints = dict.fromkeys(error.hint for error in failures.values() if error.hint)
    return UnreachableError(
        f"cannot connect to etcd: {'; '.join(causes)}",
        hint="; ".join(hints)
        or "see whether etcd runs there, or give its address as --endpoints",
    )


def _next_start(start: bytes, answer: RangeResponse) -> bytes:
    """Return the first key of the next page.

    Raises:
        EtcdError: The page was empty or out of order, so reading would never end.
    """
    last = answer.kvs[-1].key if answer.kvs else b""
    if last < start:
        raise EtcdError("etcd reports more objects but does not return them")
    return last + b"\0"


def _next_limit(limit: int, objects: int, size: int) -> int:
    """Return the number of objects for the next page, by the size of the last one."""
    fitting = PAGE_BYTES * objects // max(1, size)
    return max(1, min(fitting, 2 * limit, MAX_PAGE))
