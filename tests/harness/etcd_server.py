"""A small server that speaks as much of etcd's API as we read, over real gRPC.

The real etcd is in tests/system/e2e; this one can be told to misbehave.
"""

from __future__ import annotations

import ipaddress
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsm_kms.etcd.live import Access, Etcd
from hsm_kms.etcd.rpc.kv_pb2 import KeyValue
from hsm_kms.etcd.rpc.rpc_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
)
from hsm_kms.etcd.rpc.rpc_pb2_grpc import (
    AuthServicer,
    KVServicer,
    add_AuthServicer_to_server,
    add_KVServicer_to_server,
)
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hsm_kms.etcd.source import Item

CLUSTER = 14841639068965178418


@dataclass
class Knobs:
    """What the server does, and what it saw.

    Args:
        objects: What it holds.
        cluster: Its cluster's id.
        users: Passwords by name; empty for no authentication at all.
        refuse: Called with the number of each Range, from 1; may return a code and
            details to answer with.
        stuck: Answer every Range with the first page, and say that there is more.
    """

    objects: dict[bytes, bytes]
    cluster: int = CLUSTER
    users: dict[str, str] = field(default_factory=dict)
    refuse: Callable[[int], tuple[grpc.StatusCode, str] | None] = lambda _: None
    stuck: bool = False
    limits: list[int] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    logins: int = 0
    revision: int = 7


class _Services(KVServicer, AuthServicer):
    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs

    def Range(self, request: RangeRequest, context: Any) -> RangeResponse:  # noqa: N802
        knobs = self._knobs
        knobs.limits.append(request.limit)
        knobs.revisions.append(request.revision)
        if refused := knobs.refuse(len(knobs.limits)):
            context.abort(*refused)
        token = dict(context.invocation_metadata()).get("token", "")
        if knobs.users and not token:
            code = grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, "etcdserver: user name is empty")
        if knobs.users and token != f"token-{knobs.logins}":
            code = grpc.StatusCode.UNAUTHENTICATED
            context.abort(code, "etcdserver: invalid auth token")
        answer = self._answer(request)
        knobs.sizes.append(answer.ByteSize())
        return answer

    def _answer(self, request: RangeRequest) -> RangeResponse:
        knobs, end = self._knobs, request.range_end
        held = knobs.objects
        if not end:
            keys = [request.key] if request.key in held else []
        else:
            first = b"" if knobs.stuck else request.key
            keys = [
                k for k in sorted(held) if k >= first and end in {b"\0", max(k, end)}
            ]
        limit = request.limit or len(keys)
        return RangeResponse(
            header=ResponseHeader(cluster_id=knobs.cluster, revision=knobs.revision),
            kvs=[KeyValue(key=key, value=held[key]) for key in keys[:limit]],
            more=knobs.stuck or len(keys) > limit,
            count=len(keys),
        )

    def Authenticate(  # noqa: N802
        self, request: AuthenticateRequest, context: Any
    ) -> AuthenticateResponse:
        knobs = self._knobs
        if not knobs.users:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "etcdserver: authentication is not enabled",
            )
        if knobs.users.get(request.name) != request.password:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "etcdserver: authentication failed, invalid user ID or password",
            )
        knobs.logins += 1
        return AuthenticateResponse(token=f"token-{knobs.logins}")


class EtcdServer:
    """The server; a context manager."""

    def __init__(
        self, objects: dict[bytes, bytes] | Knobs, tls: Certificates | None = None
    ) -> None:
        self.knobs = objects if isinstance(objects, Knobs) else Knobs(objects)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        services = _Services(self.knobs)
        add_KVServicer_to_server(services, self._server)  # type: ignore[no-untyped-call]
        add_AuthServicer_to_server(services, self._server)  # type: ignore[no-untyped-call]
        if tls:
            credentials = grpc.ssl_server_credentials(
                [(tls.server_key.read_bytes(), tls.server.read_bytes())],
                tls.ca.read_bytes(),
                require_client_auth=True,
            )
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        else:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def made_objects(count: int, size: int = 10) -> dict[bytes, bytes]:
    """Secrets that are all alike."""
    return {f"/registry/secrets/n/{n:06}".encode(): bytes(size) for n in range(count)}


def read(server: EtcdServer, **access: Any) -> list[Item]:
    """Everything below /registry/ in a server, which may be slow."""
    with Etcd(
        [server.endpoint], Access(command_timeout=patient(60.0), **access)
    ) as source:
        return list(source)


@dataclass(frozen=True)
class Certificates:
    """A CA, a server's certificate for 127.0.0.1, and a client's; PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(
    folder: Path, user: str = "scanner", *, hours: int = 1
) -> Certificates:
    """Make them, in a folder of their own.

    Args:
        folder: Is made.
        user: CN of the client, which etcd takes for a user's name.
        hours: How long the server's certificate is valid still.
    """
    folder.mkdir()
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("ca", ca_key, None, ca_key)
    files = {"ca": ca.public_bytes(serialization.Encoding.PEM)}
    for name, common in (("server", "127.0.0.1"), ("client", user)):
        key = ec.generate_private_key(ec.SECP256R1())
        served = hours if name == "server" else None
        made = _certificate(common, key, ca, ca_key, hours=served)
        files[name] = made.public_bytes(serialization.Encoding.PEM)
        files[f"{name}_key"] = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, path in paths.items():
        path.write_bytes(files[name])
    return Certificates(**paths)


def _certificate(
    common: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    hours: int | None = None,
) -> x509.Certificate:
    server = hours is not None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + timedelta(hours=1 if hours is None else hours))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True
        )
    )
    if issuer is not None:
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        purposes += [ExtendedKeyUsageOID.SERVER_AUTH] if server else []
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if server:
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(issuer_key, hashes.SHA256())
