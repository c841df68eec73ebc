"""Parse one endpoint of etcd, and load its TLS files."""

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
