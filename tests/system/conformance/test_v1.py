"""Conformance, "v1": items 43 to 46."""

from __future__ import annotations

import os
import re

import pytest

from hsm_kms.api.rpc import kms_v1beta1_pb2
from hsm_kms.wrapping.record import Record
from tests.harness.wait import wait_for
from tests.system.conformance.clients import BAD_REQUEST, NOT_HELD, sync_said
from tests.system.conformance.wrappings import WRAPPINGS, each_wrapping

# As semver.org has it, without build metadata.
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?"


def version(plugin, asked: str) -> kms_v1beta1_pb2.VersionResponse:
    """Ask for the version."""
    request = kms_v1beta1_pb2.VersionRequest(version=asked)
    return plugin.v1.Version(request, timeout=3)


def test_43_version(served):
    """Version returns the API, the program's name and a semantic version."""
    answer = version(served, "v1beta1")

    assert ("v1beta1", "hsm-kms") == (answer.version, answer.runtime_name)
    assert re.fullmatch(SEMVER, answer.runtime_version)


def test_43_version_while_the_token_is_unavailable(make_plugin, hsm):
    """Version needs no token: it is the first request of an API server."""
    hsm.take_away()
    plugin = make_plugin(hsm).start()
    wait_for(lambda: plugin.events("token worker cannot start"))

    assert "v1beta1" == version(plugin, "v1beta1").version


@each_wrapping
@pytest.mark.parametrize("size", [1, 32, 1024])
def test_44_round_trip(served, size):
    """Decrypt returns the DEK, and the cipher has a legal length."""
    plain = os.urandom(size)
    cipher = served.v1_encrypt(plain)

    assert 1 <= len(cipher) <= 65535
    assert plain == served.v1_decrypt(cipher)


@each_wrapping
def test_44_health_check(served):
    """The plaintext of the API server's health check is encrypted and decrypted."""
    assert b"ping" == served.v1_decrypt(served.v1_encrypt(b"ping"))


def test_45_the_cipher_names_its_key(make_plugin, empty_hsm, serving):
    """The cipher contains its key_id, and a node without that key refuses it."""
    make_plugin(empty_hsm, name="g").cli("keys", "generate")
    other = make_plugin(empty_hsm).start()
    other.wait_healthz("ok")
    for served in map(serving, WRAPPINGS):
        cipher = served.v1_encrypt(b"ping")

        assert served.status().key_id == Record.decode(cipher).header.key_id
        assert NOT_HELD == sync_said(lambda c=cipher: other.v1_decrypt(c))


@each_wrapping
def test_45_v1_and_v2_share_the_record(served):
    """Each API decrypts what the other encrypted."""
    key_id = served.status().key_id
    sealed = served.encrypt(b"of v2")

    assert b"of v1" == served.decrypt(served.v1_encrypt(b"of v1"), key_id)
    assert b"of v2" == served.v1_decrypt(sealed.ciphertext)


@pytest.mark.parametrize("other", ["", "v1", "v2", "v1beta1 ", "V1BETA1", "v1beta1\0"])
def test_46_other_versions(served, other):
    """The server refuses a request of any other version."""
    cipher = served.v1_encrypt(b"ping")

    assert BAD_REQUEST == sync_said(lambda: version(served, other))
    assert BAD_REQUEST == sync_said(lambda: served.v1_encrypt(b"ping", version=other))
    assert BAD_REQUEST == sync_said(lambda: served.v1_decrypt(cipher, version=other))
