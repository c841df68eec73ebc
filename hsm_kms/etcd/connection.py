"""A connection to one endpoint, and what to make of what it refuses."""

from __future__ import annotations

import contextlib
import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc

from hsm_kms.etcd.rpc.rpc_pb2 import AuthenticateRequest, RangeRequest, RangeResponse
from hsm_kms.etcd.rpc.rpc_pb2_grpc import AuthStub, KVStub
from hsm_kms.etcd.source import EtcdError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from hsm_kms.etcd.endpoint import Endpoint, Tls

MAX_ANSWER_BYTES: Final = 32 * 1024**2
"""Longest answer that is taken in; no object may be longer."""

LOGIN_HINT: Final = (
    "--user NAME with ETCDCTL_PASSWORD, or --cert of a client whose CN is a user"
)
_DETAILS: Final = {
    "permission denied": (
        "etcd does not let this user read all of the prefix",
        "as root: etcdctl role grant-permission ROLE --prefix read PREFIX",
    ),
    "user name is empty": ("etcd wants a user", LOGIN_HINT),
    "authentication failed": ("etcd refuses the user or the password", LOGIN_HINT),
    "invalid auth token": ("etcd does not know the login any more", "run it again"),
    "has been compacted": (
        "etcd has compacted the revision that was being read",
        "run it again; where it always takes too long, use --from-snapshot",
    ),
}


class UnreachableError(EtcdError):
    """No answer; another endpoint may give one."""


class TooLongError(EtcdError):
    """The answer is longer than `MAX_ANSWER_BYTES`."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user of etcd.

    Args:
        name: Their name.
        password: Their password.
    """

    name: str
    password: str = field(repr=False)


class Link:
    """A connection to one endpoint.

    Args:
        endpoint: Where.
        tls: What to show and to believe, where the endpoint speaks TLS.
        login: Who to be, or None.
        seconds: How long one request may take.
    """

    def __init__(
        self, endpoint: Endpoint, tls: Tls, login: Login | None, seconds: float
    ) -> None:
        self.endpoint = endpoint
        self._login = login
        self._seconds = seconds
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._channel = _channel(endpoint, tls)

    def close(self) -> None:
        """Close it."""
        self._channel.close()

    def connects(self, seconds: float) -> bool:
        """Whether it connects within this time."""
        states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
        state = grpc.ChannelConnectivity.IDLE
        self._channel.subscribe(states.put, try_to_connect=True)
        with contextlib.suppress(queue.Empty):
            while state not in {
                grpc.ChannelConnectivity.READY,
                grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            }:
                state = states.get(timeout=seconds)
        self._channel.unsubscribe(states.put)
        return state is grpc.ChannelConnectivity.READY

    def log_in(self) -> None:
        """Take a token, where there is a login and etcd has users at all.

        Raises:
            UnreachableError: No answer.
            EtcdError: It refuses.
        """
        if not self._login:
            return
        stub = AuthStub(self._channel)  # type: ignore[no-untyped-call]
        request = AuthenticateRequest(
            name=self._login.name, password=self._login.password
        )
        try:
            answer = stub.Authenticate(request, timeout=self._seconds)
        except grpc.RpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return  # as etcdctl does
            raise _refusal(error, self.endpoint) from None
        self._metadata = (("token", answer.token),)

    def range(self, request: RangeRequest) -> RangeResponse:
        """One answer.

        Raises:
            UnreachableError: None came.
            TooLongError: It is longer than `MAX_ANSWER_BYTES`.
            EtcdError: It refuses.
        """
        try:
            return self._range(request)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not self._login:
                raise _refusal(error, self.endpoint) from None
        self.log_in()  # a token of etcd's lives for some minutes
        try:
            return self._range(request)
        except grpc.RpcError as error:
            raise _refusal(error, self.endpoint) from None

    def _range(self, request: RangeRequest) -> RangeResponse:
        stub = KVStub(self._channel)  # type: ignore[no-untyped-call]
        answer: RangeResponse = stub.Range(
            request, timeout=self._seconds, metadata=self._metadata
        )
        return answer


def _channel(endpoint: Endpoint, tls: Tls) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        # gRPC would send even requests to 127.0.0.1 through http_proxy, https_proxy or
        # grpc_proxy; etcdctl uses no proxy.
        ("grpc.enable_http_proxy", 0),
    ]
    if not endpoint.tls:
        if not endpoint.port:
            options.append(("grpc.default_authority", "localhost"))
        return grpc.insecure_channel(endpoint.target, options)
    files = tls.files
    credentials = grpc.ssl_channel_credentials(files.cacert, files.key, files.cert)
    return grpc.secure_channel(endpoint.target, credentials, options)


def _refusal(error: grpc.RpcError, endpoint: Endpoint) -> EtcdError:
    """What to say where etcd, or gRPC for it, gives an error for an answer."""
    code, details = error.code(), error.details() or ""
    said = f"{code.name}: {printable(details, 300)}"
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        return UnreachableError(said)
    # etcd has refusals of the same code; the limit on what is received is gRPC's.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return TooLongError(f"an answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
    for words, (sentence, hint) in _DETAILS.items():
        if words in details:
            return EtcdError(sentence, hint=hint)
    return EtcdError(f"{endpoint.text} refuses: {said}")
