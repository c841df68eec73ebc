"""One endpoint of etcd: how it is written, its TLS, and why it does not answer."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hsm_kms.errors import ConfigError
from hsm_kms.etcd.source import EtcdError
from hsm_kms.etcd.text import printable

_HOST_AND_PORT: Final = re.compile(
    r"(\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})"
)
_MAX_PORT: Final = 65535
# What an HTTP/2 client says first: the preface, and empty SETTINGS.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

CA_HINT: Final = "--cacert is the CA that signed it: .../pki/etcd/ca.crt with kubeadm"
CLIENT_HINT: Final = (
    "--cert and --key are a client's of etcd: .../pki/apiserver-etcd-client.crt "
    "and .key with kubeadm"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an etcd listens.

    Args:
        text: As it was given.
        host: Its name or address, without brackets; of a unix socket its path.
        port: 0 for a unix socket.
        tls: Whether it is spoken to in TLS.
    """

    text: str
    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """As gRPC names it."""
        if self.port == 0:
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def connect(self, seconds: float) -> socket.socket:
        """A plain connection.

        Raises:
            OSError: There is none to be had.
        """
        if self.port:
            return socket.create_connection((self.host, self.port), seconds)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(seconds)
        made.connect(self.host)
        return made


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of --cacert, --cert and --key, as they were read.

    Args:
        cacert: None for the CAs of this system.
        cert: None where the client has no certificate.
        key: The key of it.
    """

    cacert: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files, and a context that has found them in order."""

    files: TlsFiles
    context: ssl.SSLContext

    @staticmethod
    def load(cacert: Path | None, cert: Path | None, key: Path | None) -> Tls:
        """Read the files.

        Raises:
            EtcdError: One cannot be read, is not PEM, or does not fit the other.
        """
        files = TlsFiles(_read(cacert) or _system_cas(), _read(cert), _read(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        try:
            if cacert:
                context.load_verify_locations(cacert)
            else:
                context.load_default_certs()
        except (ssl.SSLError, OSError):
            raise EtcdError(f"{cacert} holds no certificates in PEM") from None
        try:
            if cert:
                context.load_cert_chain(cert, key, password=_no_password)
        except (ssl.SSLError, OSError):
            raise EtcdError(
                f"{cert} and {key} are not a certificate and its key in PEM"
            ) from None
        return Tls(files, context)


def parse_endpoint(text: str, *, secured: bool) -> Endpoint:
    """An endpoint as etcdctl takes it.

    Args:
        text: http://host:port, https://host:port, unix:///path, or host:port.
        secured: Whether host:port alone stands for TLS.

    Raises:
        ConfigError: It is none of these.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https" if secured else "http", text
    if scheme == "unix" and rest.startswith("/"):
        return Endpoint(text, rest, 0, tls=False)
    found = _HOST_AND_PORT.fullmatch(rest.removesuffix("/"))
    if scheme not in {"http", "https"} or not found or int(found[2]) > _MAX_PORT:
        raise ConfigError(
            [f"--endpoints: {_shown(text)} is not host:port, http://... or https://..."]
        )
    return Endpoint(text, found[1].strip("[]"), int(found[2]), tls=scheme == "https")


def why_not(endpoint: Endpoint, tls: Tls, seconds: float) -> EtcdError | None:
    """Why an endpoint cannot be talked to; gRPC hardly says.

    Args:
        endpoint: Where.
        tls: What the client shows and believes.
        seconds: How long to wait for each step.

    Returns:
        Cause and cure, or None where nothing is found wrong.
    """
    try:
        with endpoint.connect(seconds) as connection:
            if not endpoint.tls:
                return _why_not_plain(endpoint, connection)
            return _why_not_tls(endpoint, tls, connection)
    except TimeoutError:
        return EtcdError(f"no answer within {seconds:g} s")
    except OSError as error:
        return EtcdError((error.strerror or str(error)).lower())


def _why_not_tls(
    endpoint: Endpoint, tls: Tls, connection: socket.socket
) -> EtcdError | None:
    try:
        with tls.context.wrap_socket(
            connection, server_hostname=endpoint.host
        ) as secure:
            # With TLS 1.3 a server refuses a certificate after the handshake.
            secure.sendall(_HELLO)
            if not secure.recv(1):
                return EtcdError("it ends the connection at once", hint=CLIENT_HINT)
    except ssl.SSLCertVerificationError as error:
        said = printable(error.verify_message)
        return EtcdError(f"its certificate is not to be trusted: {said}", hint=CA_HINT)
    except ssl.SSLError as error:
        return _refused(error)
    return None


def _refused(error: ssl.SSLError) -> EtcdError:
    reason = (error.reason or "").lower().replace("_", " ")
    if "certificate required" in reason or "handshake failure" in reason:
        return EtcdError("it wants a client's certificate", hint=CLIENT_HINT)
    if "certificate" in reason or "unknown ca" in reason:
        return EtcdError("it refuses the client's certificate", hint=CLIENT_HINT)
    if "wrong version number" in reason or "record layer failure" in reason:
        return EtcdError("it does not speak TLS", hint="write http:// before it")
    return EtcdError(f"TLS fails: {printable(reason or str(error))}")


def _why_not_plain(endpoint: Endpoint, connection: socket.socket) -> EtcdError | None:
    connection.sendall(_HELLO)
    if connection.recv(1) == b"\0":  # of SETTINGS
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is only asked whether it speaks TLS
    try:
        with (
            endpoint.connect(connection.gettimeout() or 1.0) as again,
            context.wrap_socket(again),
        ):
            speaks_tls = True
    except ssl.SSLError as error:
        speaks_tls = "certificate" in str(error).lower()
    if speaks_tls:
        return EtcdError(
            "it speaks TLS", hint="write https:// before it, and give --cacert"
        )
    return EtcdError("it does not speak HTTP/2, so it is no etcd")


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise EtcdError(f"{path} cannot be read: {error.strerror}") from None


def _system_cas() -> bytes | None:
    """This system's CAs; None where it has no such file, and gRPC's own count."""
    path = ssl.get_default_verify_paths().cafile
    try:
        return Path(path).read_bytes() if path else None
    except OSError:
        return None


def _no_password() -> str:
    return ""  # instead of asking on the terminal


def _shown(text: str) -> str:
    return "a URL with a user in it" if "@" in text else repr(printable(text))
