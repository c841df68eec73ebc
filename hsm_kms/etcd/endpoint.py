"""Parse one endpoint of etcd, and connect to it."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsm_kms.config.formats import grpc_target
from hsm_kms.errors import ConfigError
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
            return grpc_target(Path(self.host))
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


def _shown(text: str) -> str:
    return "a URL with a user in it" if "@" in text else repr(printable(text))
