"""Parse one endpoint of etcd, load its TLS files, and find out why it fails."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hsm_kms.errors import ConfigError
from hsm_kms.etcd.source import EtcdError
from hsm_kms.etcd.text import printable

_HOST_AND_PORT: Final = re.compile(
    r"(\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})"
)
_MAX_PORT: Final = 65535
_NAMES_SECONDS: Final = 2.0
_MAX_NAMES: Final = 8
# X509_V_ERR_ of OpenSSL's x509_vfy.h: of the host name or address; of time.
_OTHER_NAME: Final = frozenset({62, 64})
_OTHER_TIME: Final = frozenset({9, 10})
# An HTTP/2 client begins with this: the preface, and empty SETTINGS.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

CA_HINT: Final = (
    "give the CA that signed it as --cacert (kubeadm: /etc/kubernetes/pki/etcd/ca.crt)"
)
TIME_HINT: Final = (
    "renew the certificate (kubeadm: kubeadm certs renew etcd-server), or set the clock"
)
EXPIRED_HINT: Final = (
    "renew it (kubeadm: kubeadm certs renew apiserver-etcd-client), or set the clock"
)
CLIENT_HINT: Final = (
    "give an etcd client's certificate as --cert and its key as --key "
    "(kubeadm: /etc/kubernetes/pki/apiserver-etcd-client.crt and .key)"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Describe where an etcd listens.

    Args:
        text: The endpoint as it was given.
        host: Name or address of the host, without brackets; or path of a unix socket.
        port: TCP port; 0 for a unix socket.
        tls: True if the endpoint is used with TLS.
    """

    text: str
    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """Return the endpoint as a gRPC target."""
        if self.port == 0:
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def connect(self, seconds: float) -> socket.socket:
        """Return a connected socket, without TLS.

        Args:
            seconds: Timeout to connect, and of each later call on the socket.

        Raises:
            OSError: The connection failed.
        """
        if self.port:
            return socket.create_connection((self.host, self.port), seconds)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(seconds)
        made.connect(self.host)
        return made


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Hold the content of the PEM files of --cacert, --cert and --key.

    Args:
        cacert: CA certificates; None for gRPC's own.
        cert: Certificate of the client, or None.
        key: Private key of the client's certificate, or None.
    """

    cacert: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """Hold the TLS files, and an SSL context that has accepted them.

    Args:
        files: The files.
        context: The context.
        server_name: Name in the server's certificate; None for the endpoint's host.
    """

    files: TlsFiles
    context: ssl.SSLContext
    server_name: str | None = None

    @staticmethod
    def load(
        cacert: Path | None,
        cert: Path | None,
        key: Path | None,
        server_name: str | None = None,
    ) -> Tls:
        """Read and check the TLS files.

        Raises:
            EtcdError: A file cannot be read or is not PEM, or the key does not belong
                to the certificate.
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
            raise EtcdError(f"{cacert} contains no PEM certificates") from None
        try:
            if cert:
                context.load_cert_chain(cert, key, password=_no_password)
        except (ssl.SSLError, OSError):
            raise EtcdError(
                f"{cert} and {key} are not a PEM certificate and its private key"
            ) from None
        return Tls(files, context, server_name)


def parse_endpoint(text: str, *, secured: bool) -> Endpoint:
    """Parse an endpoint in the forms that etcdctl accepts.

    Args:
        text: http://host:port, https://host:port, unix:///path, or host:port.
        secured: True if host:port without a scheme means TLS.

    Raises:
        ConfigError: The text has none of these forms.
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
    """Find out why an endpoint does not work, because gRPC hardly says.

    Args:
        endpoint: The endpoint.
        tls: Certificates and CAs of the client.
        seconds: Timeout of each step.

    Returns:
        Cause and cure, or None if nothing wrong was found.
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
            connection, server_hostname=tls.server_name or endpoint.host
        ) as secure:
            # With TLS 1.3 a server rejects a certificate only after the handshake.
            secure.sendall(_HELLO)
            if not secure.recv(1):
                return EtcdError("it closes the connection", hint=CLIENT_HINT)
    except ssl.SSLCertVerificationError as error:
        return _not_trusted(endpoint, tls, error)
    except ssl.SSLError as error:
        return _refused(error)
    return None


def _not_trusted(
    endpoint: Endpoint, tls: Tls, error: ssl.SSLCertVerificationError
) -> EtcdError:
    said = printable(error.verify_message)
    if error.verify_code in _OTHER_NAME:
        wanted = tls.server_name or endpoint.host
        names = ", ".join(_names_in_certificate(endpoint, tls)) or "another name"
        return EtcdError(
            f"its certificate is for {names}, and not for {printable(wanted)}",
            hint="give one of the names as host in --endpoints, or as "
            "--tls-server-name if this is the right etcd",
        )
    if error.verify_code in _OTHER_TIME:
        return EtcdError(f"its certificate is not valid now: {said}", hint=TIME_HINT)
    return EtcdError(f"its certificate is not trusted: {said}", hint=CA_HINT)


def _names_in_certificate(endpoint: Endpoint, tls: Tls) -> list[str]:
    """Return some names in a server's certificate that is trusted but for its names."""
    tls.context.check_hostname = False
    try:
        with (
            endpoint.connect(_NAMES_SECONDS) as connection,
            tls.context.wrap_socket(connection) as secure,
        ):
            certificate = secure.getpeercert() or {}
    except OSError:
        return []
    finally:
        tls.context.check_hostname = True
    found: Any = certificate.get("subjectAltName", ())
    return [printable(str(name)) for _, name in found][:_MAX_NAMES]


def _refused(error: ssl.SSLError) -> EtcdError:
    reason = (error.reason or "").lower().replace("_", " ")
    if "certificate required" in reason or "handshake failure" in reason:
        return EtcdError("it requires a client certificate", hint=CLIENT_HINT)
    if "certificate expired" in reason:
        return EtcdError("the client certificate has expired", hint=EXPIRED_HINT)
    if "certificate" in reason or "unknown ca" in reason:
        return EtcdError("it rejects the client certificate", hint=CLIENT_HINT)
    if "wrong version number" in reason or "record layer failure" in reason:
        return EtcdError(
            "it does not use TLS", hint="write http:// before host and port"
        )
    return EtcdError(f"TLS failed: {printable(reason or str(error))}")


def _why_not_plain(endpoint: Endpoint, connection: socket.socket) -> EtcdError | None:
    connection.sendall(_HELLO)
    if connection.recv(1) == b"\0":  # of SETTINGS
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # this only finds out if the server uses TLS
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
            "it uses TLS",
            hint="write https:// before host and port, and give --cacert",
        )
    return EtcdError("it does not speak HTTP/2, so it is not etcd")


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise EtcdError(f"{path} cannot be read: {error.strerror}") from None


def _system_cas() -> bytes | None:
    """Return the CA certificates of this system; None if it has no such file."""
    path = ssl.get_default_verify_paths().cafile
    try:
        return Path(path).read_bytes() if path else None
    except OSError:
        return None


def _no_password() -> str:
    return ""  # otherwise OpenSSL would ask on the terminal


def _shown(text: str) -> str:
    return "a URL with a user in it" if "@" in text else repr(printable(text))
