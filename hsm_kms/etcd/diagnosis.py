"""Find out why an endpoint of etcd does not work, because gRPC hardly says."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.etcd.source import EtcdError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    import socket

    from hsm_kms.etcd.endpoint import Endpoint
    from hsm_kms.etcd.tls import Tls

_NAMES_SECONDS: Final = 2.0
_MAX_NAMES: Final = 8
# X509_V_ERR_ of OpenSSL's x509_vfy.h: of the host name or address; of time.
_OTHER_NAME: Final = frozenset({62, 64})
_OTHER_TIME: Final = frozenset({9, 10})
# An HTTP/2 client begins with this: the preface, and empty SETTINGS.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

_SETTINGS: Final = b"\0"  # the first byte of an HTTP/2 server's answer

_NO_TLS: Final = "it does not use TLS"
NO_TLS_HINT: Final = "write http:// before host and port"
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


def why_not(endpoint: Endpoint, tls: Tls, seconds: float) -> EtcdError | None:
    """Find out why an endpoint does not work.

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
    except (ssl.SSLEOFError, ConnectionResetError):
        # Go's etcd closes the connection at once if it is sent TLS and wants none.
        if endpoint.tls and _answers_plain(endpoint, seconds):
            return EtcdError(_NO_TLS, hint=NO_TLS_HINT)
        return EtcdError("it closes the connection", hint=CLIENT_HINT)
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
    except ssl.SSLEOFError:
        raise
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
        return EtcdError(_NO_TLS, hint=NO_TLS_HINT)
    return EtcdError(f"TLS failed: {printable(reason or str(error))}")


def _answers_plain(endpoint: Endpoint, seconds: float) -> bool:
    """Return True if the endpoint answers HTTP/2 without TLS."""
    try:
        with endpoint.connect(seconds) as connection:
            return _speaks_http2(connection)
    except OSError:
        return False


def _speaks_http2(connection: socket.socket) -> bool:
    """Return True if a server answers HTTP/2; False if it resets the connection, too.

    Raises:
        TimeoutError: The server does not answer.
    """
    try:
        connection.sendall(_HELLO)
        return connection.recv(1) == _SETTINGS
    except ConnectionError:
        return False


def _why_not_plain(endpoint: Endpoint, connection: socket.socket) -> EtcdError | None:
    if _speaks_http2(connection):
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
    except ConnectionResetError:
        speaks_tls = False
    if speaks_tls:
        return EtcdError(
            "it uses TLS",
            hint="write https:// before host and port, and give --cacert",
        )
    return EtcdError("it does not speak HTTP/2, so it is not etcd")
