"""A live etcd, read page by page over gRPC; nothing but Range is ever called.

All pages are of one revision, so what is read is what etcd held at one moment.
The number of objects in a page follows their size, so that neither side has to
hold more than a few MiB for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from hsm_kms.etcd.connection import Link, Login, TooLongError, UnreachableError
from hsm_kms.etcd.endpoint import Endpoint, Tls, parse_endpoint, why_not
from hsm_kms.etcd.rpc.rpc_pb2 import RangeRequest, RangeResponse
from hsm_kms.etcd.source import DEFAULT_PREFIX, EtcdError, Item, end_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

PAGE_BYTES: Final = 2 * 1024**2
"""What a page should come to."""

MAX_PAGE: Final = 250
"""Most objects asked for at once: etcd has to put them together in memory, and they
may be far longer than those before."""

_FIRST_PAGE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to get into an etcd.

    Args:
        cacert: PEM file of the server's CA, None for this system's.
        cert: PEM file of the client's certificate, or None.
        key: PEM file of its key.
        login: User and password, or None.
        dial_timeout: Seconds to connect to one endpoint.
        command_timeout: Seconds for one request.
    """

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    login: Login | None = None
    dial_timeout: float = 2.0
    command_timeout: float = 10.0


class Etcd:
    """A live etcd; see `hsm_kms.etcd.source.Source`.

    Args:
        endpoints: As etcdctl takes them; tried in turn.
        access: How to get in.
        prefix: What the keys begin with; empty for all.

    Raises:
        ConfigError: An endpoint is not one.
        EtcdError: A file of `access` is not what it should be.
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
        secured = bool(access.cacert or access.cert)
        self._endpoints = [parse_endpoint(each, secured=secured) for each in endpoints]
        self._tls = Tls.load(access.cacert, access.cert, access.key)
        self._link: Link | None = None
        self._cluster: int | None = None
        self._total: int | None = None
        self._done = 0

    @property
    def name(self) -> str:
        """The endpoint that answers, or all of them."""
        if self._link:
            return self._link.endpoint.text
        return ", ".join(each.text for each in self._endpoints)

    def __enter__(self) -> Self:
        """Connect to the first endpoint that answers.

        Raises:
            EtcdError: None does.
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
        """Every object below the prefix, as of one revision.

        Raises:
            EtcdError: Not all could be read.
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
        """The object with this key, or None.

        Raises:
            EtcdError: It could not be read.
        """
        answer = self._range(RangeRequest(key=key))
        self.revision = answer.header.revision
        return next((Item(pair.key, pair.value) for pair in answer.kvs), None)

    def total(self) -> int | None:
        """How many objects there are at this revision; None before the first page."""
        return self._total

    def share(self) -> float | None:
        """How much has been read, from 0 to 1."""
        if self._total is None:
            return None
        return self._done / max(1, self._total)

    def _page(self, start: bytes, end: bytes, limit: int) -> tuple[RangeResponse, int]:
        """A page, and how many objects were asked for: fewer where they are long."""
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
        """One answer, from whichever endpoint gives one.

        Raises:
            EtcdError: etcd refuses, or no endpoint answers.
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
            EtcdError: All have, or etcd refuses the login.
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
    hints = [error.hint for error in failures.values() if error.hint]
    return UnreachableError(
        f"no etcd answers: {'; '.join(causes)}",
        hint=hints[0] if hints else "--endpoints says where etcd is",
    )


def _next_start(start: bytes, answer: RangeResponse) -> bytes:
    """Where the next page begins.

    Raises:
        EtcdError: It would not go on: this is no etcd, or a broken one.
    """
    last = answer.kvs[-1].key if answer.kvs else b""
    if last < start:
        raise EtcdError("etcd says that there is more, and does not go on")
    return last + b"\0"


def _next_limit(limit: int, objects: int, size: int) -> int:
    """How many objects to ask for next, judged by those that just came."""
    fitting = PAGE_BYTES * objects // max(1, size)
    return max(1, min(fitting, 2 * limit, MAX_PAGE))
