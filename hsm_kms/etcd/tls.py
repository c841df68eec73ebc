"""Load the TLS files of an etcd client, of which any can be stdin."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.etcd.source import EtcdError

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN: Final = Path("-")
"""Stands for stdin in the place of a PEM file."""

PIPE_HINT: Final = (
    "pipe it in, the client's certificate first: `cat client.crt client.key ca.crt |`"
)
_MAX_PEM_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Hold the content of the PEM files of --cacert, --cert and --key.

    One stream may be all three, so each may contain the private key.

    Args:
        cacert: CA certificates; None for gRPC's own.
        cert: Certificate of the client, or None.
        key: Private key of the client's certificate, or None.
    """

    cacert: bytes | None = field(repr=False)
    cert: bytes | None = field(repr=False)
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

        Args:
            cacert: CA certificates; None for those of this system.
            cert: Certificate of the client, or None. Other certificates may follow it.
            key: Private key of the client's certificate, or None.
            server_name: Name in the server's certificate; None for the endpoint's host.

        Those that are `STDIN` are one stream.

        Raises:
            EtcdError: A file cannot be read or is not PEM, or the key does not belong
                to the certificate.
        """
        given = dict.fromkeys(path for path in (cacert, cert, key) if path)
        read = {path: _read(path) for path in given}
        files = TlsFiles(
            read[cacert] if cacert else _system_cas(),
            read[cert] if cert else None,
            read[key] if key else None,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        if cacert:
            _load_ca(context, cacert, read[cacert])
        else:
            context.load_default_certs()
        if cert and key:
            _load_client(context, (cert, read[cert]), (key, read[key]))
        return Tls(files, context, server_name)


def _load_ca(context: ssl.SSLContext, path: Path, pem: bytes) -> None:
    try:
        with _in_memory(pem) as file:
            context.load_verify_locations(file)
    except (ssl.SSLError, OSError):
        raise EtcdError(
            f"{_name(path)} contains no PEM certificates", hint=_hint(path)
        ) from None


def _load_client(
    context: ssl.SSLContext, cert: tuple[Path, bytes], key: tuple[Path, bytes]
) -> None:
    """Load certificate and private key of the client, each a path and its content."""
    names = " and ".join(dict.fromkeys((_name(cert[0]), _name(key[0]))))
    try:
        with _in_memory(cert[1]) as chain, _in_memory(key[1]) as private:
            context.load_cert_chain(chain, private, password=_no_password)
    except (ssl.SSLError, OSError):
        raise EtcdError(
            f"there is no PEM certificate with its private key in {names}",
            hint=_hint(cert[0], key[0]),
        ) from None


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Provide the path of a file in memory: ssl takes paths, and stdin is read once."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _name(path: Path) -> str:
    return "stdin" if path == STDIN else str(path)


def _hint(*paths: Path) -> str | None:
    return PIPE_HINT if STDIN in paths else None


def _read(path: Path) -> bytes:
    if path == STDIN:
        return read_stdin()
    try:
        return path.read_bytes()
    except OSError as error:
        raise EtcdError(f"{path} cannot be read: {error.strerror}") from None


def read_stdin() -> bytes:
    """Return the PEM files that stdin is.

    Raises:
        EtcdError: stdin is a terminal, empty or too long.
    """
    if sys.stdin.isatty():
        raise EtcdError("stdin is a terminal, not a PEM file", hint=PIPE_HINT)
    content = sys.stdin.buffer.read(_MAX_PEM_BYTES + 1)
    if not content or len(content) > _MAX_PEM_BYTES:
        size = "too long" if content else "empty"
        raise EtcdError(f"stdin is {size} for a PEM file", hint=PIPE_HINT)
    return content


def _system_cas() -> bytes | None:
    """Return the CA certificates of this system; None if it has no such file."""
    path = ssl.get_default_verify_paths().cafile
    try:
        return Path(path).read_bytes() if path else None
    except OSError:
        return None


def _no_password() -> str:
    return ""  # otherwise OpenSSL would ask on the terminal
