"""Connect to one endpoint of etcd, and translate its errors."""

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
from hsm_kms.interrupts import held_back

if TYPE_CHECKING:
    from hsm_kms.etcd.endpoint import Endpoint
    from hsm_kms.etcd.tls import Tls

MAX_ANSWER_BYTES: Final = 32 * 1024**2
"""Longest response that is accepted; no object may be longer."""

LOGIN_HINT: Final = (
    "give --user NAME with ETCDCTL_PASSWORD, or a --cert whose CN is an etcd user"
)
_COMPACTED_HINT: Final = (
    "run the command again; if it always takes too long, raise the API server's "
    "--etcd-compaction-interval, or have scan and verify read a snapshot"
)
_DETAILS: Final = {
    "permission denied": (
        "permission denied: the etcd user cannot read all keys below the prefix",
        "as root run `etcdctl role grant-permission ROLE --prefix read PREFIX`",
    ),
    "user name is empty": ("etcd requires a user", LOGIN_HINT),
    "authentication failed": ("etcd rejected the user or the password", LOGIN_HINT),
    "invalid auth token": ("the login to etcd has expired", "run the command again"),
    "has been compacted": (
        "etcd compacted the revision while it was being read",
        _COMPACTED_HINT,
    ),
}


class UnreachableError(EtcdError):
    """Raised when an endpoint does not answer; another endpoint may."""


class TooLongError(EtcdError):
    """Raised when a response is longer than `MAX_ANSWER_BYTES`."""


@dataclass(frozen=True, slots=True)
class Login:
    """Name a user of etcd.

    Args:
        name: Name of the user.
        password: Password of the user.
    """

    name: str
    password: str = field(repr=False)


class Link:
    """Send requests to one endpoint.

    Args:
        endpoint: The endpoint.
        tls: Certificates and CAs, used if the endpoint speaks TLS.
        login: User and password, or None for no login.
        seconds: Timeout of one request.
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
        """Close the connection."""
        with held_back():
            self._channel.close()

    def connects(self, seconds: float) -> bool:
        """Return True if the connection can be established within `seconds`."""
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
        """Get an auth token from etcd, if there is a login and etcd has users.

        Raises:
            UnreachableError: The endpoint does not answer.
            EtcdError: etcd rejected the login.
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
        """Return the response to one Range request.

        Raises:
            UnreachableError: The endpoint does not answer.
            TooLongError: The response is longer than `MAX_ANSWER_BYTES`.
            EtcdError: etcd refused the request.
        """
        try:
            return self._range(request)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not self._login:
                raise _refusal(error, self.endpoint) from None
        self.log_in()  # an auth token of etcd expires after some minutes
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
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    files = tls.files
    credentials = grpc.ssl_channel_credentials(files.cacert, files.key, files.cert)
    return grpc.secure_channel(endpoint.target, credentials, options)


def _refusal(error: grpc.RpcError, endpoint: Endpoint) -> EtcdError:
    """Return the error for a gRPC status of etcd or of the gRPC library."""
    code, details = error.code(), error.details() or ""
    said = f"{code.name}: {printable(details, 300)}"
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        return UnreachableError(said)
    # etcd uses RESOURCE_EXHAUSTED too; only gRPC's own limit has these words.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return TooLongError(f"a response exceeds {MAX_ANSWER_BYTES >> 20} MiB")
    for words, (cause, hint) in _DETAILS.items():
        if words in details:
            return EtcdError(cause, hint=hint)
    return EtcdError(f"{endpoint.text} refused the request: {said}")
