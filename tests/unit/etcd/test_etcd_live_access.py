"""Test access to etcd: TLS, users and passwords, forms of endpoints."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from dataclasses import replace

import pytest

from hsm_kms.errors import ConfigError
from hsm_kms.etcd.connection import Login
from hsm_kms.etcd.diagnosis import why_not
from hsm_kms.etcd.endpoint import Endpoint, parse_endpoint
from hsm_kms.etcd.live import Access, Etcd
from hsm_kms.etcd.source import EtcdError
from hsm_kms.etcd.tls import Tls
from tests.harness.etcd_server import (
    Certificates,
    EtcdServer,
    Knobs,
    made_objects,
    make_certificates,
    read,
)
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient

CANNOT = "hsm-kms: cannot connect to etcd: 127.0.0.1:2379: "  # on the page


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Provide certificates of a CA, a server and a client."""
    return make_certificates(tmp_path_factory.mktemp("tls") / "pki")


def access(certificates, **changes) -> Access:
    given = {
        "cacert": certificates.ca,
        "cert": certificates.client,
        "key": certificates.client_key,
    }
    return Access(**(given | changes))


def test_no_proxy_is_used(monkeypatch, certificates):
    """A proxy named in the environment gets no request to etcd, as with etcdctl."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    with EtcdServer(made_objects(3)) as server, Etcd([server.endpoint]) as source:
        assert 3 == len(list(source))
    with (
        EtcdServer(made_objects(3), certificates) as server,
        Etcd([server.endpoint], access(certificates)) as source,
    ):
        assert 3 == len(list(source))


def test_tls_with_a_client_certificate(certificates):
    """With --cacert, --cert and --key, an endpoint without a scheme uses TLS."""
    with (
        EtcdServer(made_objects(3), certificates) as server,
        Etcd([server.endpoint], access(certificates)) as source,
    ):
        assert 3 == len(list(source))


@pytest.mark.parametrize(
    ("wrong", "scheme", "words", "hint"),
    [
        ("no client", "", "it closes the connection", "as --cert and its key as --key"),
        ("other CA", "", "its certificate is not trusted", "--cacert"),
        ("system CAs", "https://", "its certificate is not trusted", "--cacert"),
        (
            "other client",
            "",
            "it closes the connection",
            "as --cert and its key as --key",
        ),
        ("plain", "http://", "it uses TLS", "https://"),
    ],
)
def test_tls_that_fails(wrong, scheme, words, hint, certificates, tmp_path):
    """A TLS error is explained, with the option that fixes it."""
    other = make_certificates(tmp_path / "other")
    given = {
        "no client": access(certificates, cert=None, key=None),
        "other CA": access(certificates, cacert=other.ca),
        "system CAs": access(certificates, cacert=None),
        "other client": access(certificates, cert=other.client, key=other.client_key),
        "plain": Access(),
    }[wrong]
    with (
        EtcdServer(made_objects(3), certificates) as server,
        pytest.raises(EtcdError) as caught,
        Etcd([f"{scheme}{server.endpoint}"], given),
    ):
        pass

    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert is_explained(f"{CANNOT}{words}")


def test_a_certificate_for_another_name(certificates):
    """A certificate without the endpoint's host is explained; a name can be given."""
    with EtcdServer(made_objects(3), certificates) as server:
        endpoints = [f"localhost:{server.port}"]
        with pytest.raises(EtcdError) as caught, Etcd(endpoints, access(certificates)):
            pass
        named = access(certificates, tls_server_name="127.0.0.1")
        with Etcd(endpoints, named) as source:
            assert 3 == len(list(source))

    cause = "its certificate is for 127.0.0.1, and not for localhost"
    assert cause in str(caught.value)
    assert is_explained(f"{CANNOT}{cause}")
    assert "--tls-server-name" in caught.value.hint
    assert "--cacert" not in caught.value.hint


def test_a_certificate_that_has_expired(tmp_path):
    """An expired certificate must be renewed; no other CA helps."""
    expired = make_certificates(tmp_path / "expired", hours=-1)
    with (
        EtcdServer(made_objects(3), expired) as server,
        pytest.raises(
            EtcdError, match="is not valid now: certificate has exp"
        ) as caught,
        Etcd([server.endpoint], access(expired)),
    ):
        pass

    assert caught.value.hint.startswith("renew the certificate")
    assert is_explained(f"{CANNOT}its certificate is not valid now: certificate has")


def test_tls_without_files(certificates):
    """With --insecure-transport=false an endpoint without a scheme uses TLS."""
    with (
        EtcdServer(made_objects(3), certificates) as server,
        pytest.raises(EtcdError, match="its certificate is not trusted"),
        Etcd([server.endpoint], Access(secured=True)),
    ):
        pass


def test_tls_where_there_is_none(certificates):
    """A server without TLS is reported as such."""
    with (
        EtcdServer(made_objects(3)) as server,
        pytest.raises(EtcdError, match="it does not use TLS"),
        Etcd([server.endpoint], access(certificates)),
    ):
        pass

    assert is_explained(f"{CANNOT}it does not use TLS")


def plain_or_nothing(server: socket.socket) -> None:
    """Answer HTTP/2 without TLS, and close any other connection, as Go's etcd does."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                if connection.recv(3) == b"PRI":
                    connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))


def test_tls_that_is_only_closed(certificates):
    """A server that closes a connection with TLS, and answers one without, is named."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=plain_or_nothing, args=(server,), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        endpoint = Endpoint(f"127.0.0.1:{port}", "127.0.0.1", port, tls=True)
        tls = Tls.load(certificates.ca, None, None)
        cause = why_not(endpoint, tls, patient(5))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert "it does not use TLS" == str(cause)
    assert "write http:// before host and port" == cause.hint


def tls_or_reset(server: socket.socket, certificates: Certificates) -> None:
    """Reset each connection that does not begin with TLS, as some proxies do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ssl.SSLError):
                if connection.recv(3, socket.MSG_PEEK) == b"PRI":
                    at_once = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                else:
                    context.wrap_socket(connection, server_side=True).close()


def test_plain_where_it_is_reset(certificates):
    """A server with TLS that resets a connection without TLS is recognized."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        serve = threading.Thread(
            target=tls_or_reset, args=(server, certificates), daemon=True
        )
        serve.start()
        port = server.getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", "127.0.0.1", port, tls=False)
        cause = why_not(endpoint, Tls.load(None, None, None), patient(5))
        server.shutdown(socket.SHUT_RDWR)
        serve.join()

    assert "it uses TLS" == str(cause)
    assert "write https:// before host and port, and give --cacert" == cause.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cacert": "none"}, "none.pem cannot be read: No such file"),
        ({"cacert": "client_key"}, "client_key.pem contains no PEM certificates"),
        ({"key": "server_key"}, "there is no PEM certificate with its private key in"),
        ({"cert": "client_key"}, "there is no PEM certificate with its private key in"),
    ],
)
def test_files_of_tls(changes, words, certificates):
    """A TLS file that is unreadable or wrong is named in the error."""
    folder = certificates.ca.parent
    files = {name: folder / f"{file}.pem" for name, file in changes.items()}

    with pytest.raises(EtcdError) as caught:
        Etcd(["127.0.0.1:2379"], replace(access(certificates), **files))

    assert words in str(caught.value)


def test_users_and_passwords():
    """A user logs in, and again when etcd's auth token has expired."""
    knobs = Knobs(made_objects(1000), users={"root": "hunter2"})

    def forget(number: int) -> None:
        if number == 3:
            knobs.logins += 1  # another token counts from now on

    knobs.refuse = forget
    with EtcdServer(knobs) as server:
        assert 1000 == len(read(server, login=Login("root", "hunter2")))

    assert 3 == knobs.logins


@pytest.mark.parametrize(
    ("login", "words"),
    [
        (None, "etcd requires a user"),
        (Login("root", "wrong"), "etcd rejected the user or the password"),
    ],
)
def test_users_that_are_refused(login, words):
    """A missing user or a wrong password is explained."""
    knobs = Knobs(made_objects(3), users={"root": "hunter2"})
    with EtcdServer(knobs) as server, pytest.raises(EtcdError, match=words) as caught:
        read(server, login=login)

    assert "--user" in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_a_user_where_etcd_has_none():
    """A user does no harm if etcd has no users, as with etcdctl."""
    with EtcdServer(made_objects(3)) as server:
        assert 3 == len(read(server, login=Login("root", "x")))


@pytest.mark.parametrize(
    ("text", "target", "tls"),
    [
        ("127.0.0.1:2379", "127.0.0.1:2379", False),
        ("http://etcd-0.etcd:2379", "etcd-0.etcd:2379", False),
        ("https://etcd.example.com:2379/", "etcd.example.com:2379", True),
        ("https://[::1]:2379", "[::1]:2379", True),
        ("unix:///run/etcd.sock", "unix:/run/etcd.sock", False),
    ],
)
def test_endpoints(text, target, tls):
    """Endpoints have the forms that etcdctl accepts."""
    endpoint = parse_endpoint(text, secured=False)

    assert (text, target, tls) == (endpoint.text, endpoint.target, endpoint.tls)
    assert parse_endpoint("etcd:2379", secured=True).tls


@pytest.mark.parametrize(
    "text",
    ["", "etcd", "etcd:", "etcd:99999", "ftp://etcd:2379", "https://", "a b:1", "::1"],
)
def test_endpoints_that_are_none(text):
    """Any other endpoint is refused, with a list of the forms."""
    with pytest.raises(ConfigError, match="is not host:port, http://"):
        parse_endpoint(text, secured=False)


def test_an_endpoint_with_a_password_is_not_quoted():
    """An endpoint that contains a password is refused without quoting it."""
    with pytest.raises(ConfigError) as caught:
        parse_endpoint("https://root:hunter2@etcd:2379", secured=False)

    assert "hunter2" not in str(caught.value)
