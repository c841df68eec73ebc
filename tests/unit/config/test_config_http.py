"""Test the section http: addresses and the admin socket."""

import socket
from pathlib import Path

import pytest

from hsm_kms.config.load import parse
from hsm_kms.http.address import TcpAddress
from tests.unit.config.test_config import faults_of, with_


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9462", ("127.0.0.1", 9462)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104
        ("10.0.0.7:65535", ("10.0.0.7", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:80", ("::", 80)),
        (None, None),
    ],
)
def test_addresses(text, address):
    """`http.listen` is an address with a port, or null."""
    config = parse(with_({"http.listen": text}))

    assert address == config.http.address


def test_defaults():
    """The defaults are a loopback address, and a socket beside the KMS socket."""
    http = parse(with_()).http

    assert ("127.0.0.1", 9462) == http.address
    assert Path("/run/hsm-kms/admin.sock") == http.admin_socket


@pytest.mark.parametrize(
    "text",
    [
        *("localhost:80", "node-1:80", ":80", "80", "", "127.0.0.1", "127.0.0.1:"),
        *("127.0.0.1:65536", "127.0.0.1:080", "127.0.0.1:-1", "127.0.0.1:80 "),
        *("127.1:80", "256.0.0.1:80", "127.0.0.1:\u0661", "127.0.0.1:99999999"),
        *("::1:80", "[::1]", "[127.0.0.1]:80", "[fe80::1%eth0]:80", "[g::]:80"),
        *("http://127.0.0.1:80", "127.0.0.1:80\n", 80, True, ["127.0.0.1:80"]),
    ],
    ids=repr,
)
def test_other_addresses_are_refused(text):
    """Host names and malformed addresses are refused."""
    [told] = faults_of(with_({"http.listen": text}))

    assert told.startswith("http.listen: must ")


@pytest.mark.parametrize(
    ("admin", "fault"),
    [
        ("admin.sock", "must be an absolute path, beginning with /"),
        ("/" + "s" * 107, "must be at most 107 bytes long"),
        ("/run/", "must name a file, not a directory"),
        ("/run/k.sock", "must not be the path of listen.socket, or of its lock"),
        ("/run/./k.sock", "must not be the path of listen.socket, or of its lock"),
        ("/run/k.sock.lock", "must not be the path of listen.socket, or of its lock"),
    ],
)
def test_admin_sockets_that_cannot_be(admin, fault):
    """An admin socket that is too long or already the KMS socket is refused."""
    changes = {"listen.socket": "unix:///run/k.sock", "http.admin_socket": admin}
    [told] = faults_of(with_(changes))

    assert told.startswith(f"http.admin_socket: {fault}")


def test_defaults_collide_too():
    """The KMS socket cannot have the default path of the admin socket."""
    [told] = faults_of(with_({"listen.socket": "/run/hsm-kms/admin.sock"}))

    assert told.startswith("http.admin_socket: must not be the path of listen.socket")


def test_no_admin_socket():
    """`admin_socket: null` disables the admin socket, and collides with no path."""
    assert parse(with_({"http.admin_socket": None})).http.admin_socket is None


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
def test_addresses_can_be_bound(text):
    """The server can listen on each address that the configuration accepts."""
    host, port = parse(with_({"http.listen": text})).http.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as attempt:
            attempt.bind((host, port))
    except OSError:
        pytest.skip("this machine has no IPv6")
    listening = TcpAddress(host, port).listen(1)
    with listening, socket.create_connection(listening.getsockname()[:2]):
        pass
