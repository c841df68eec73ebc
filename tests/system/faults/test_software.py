"""With local KEKs no Encrypt fails, whatever a token does under load."""

from __future__ import annotations

import secrets
import time

import pytest

from hsm_kms.wrapping.record import Kind, Record
from tests.harness.wait import wait_for
from tests.system.faults.load import OLD, Kept
from tests.system.faults.test_recovery import (
    all_killed,
    all_sessions_hang,
    killed,
    logged_out,
    under_load,
)

SECONDS = 10  # until all streams are served again
OUTAGE_SECONDS = 1.5

each_wrapping = pytest.mark.parametrize("rig", ["software", "fallback"], indirect=True)


@pytest.fixture
def rig(make_rig, request):
    """A server on the shim, of this wrapping in v2; for v1 the token wraps."""
    made = make_rig(
        token={"call_timeout": "500ms", "hang_timeout": "1500ms"},
        apis={
            "v2": {"enabled": True, "wrapping": request.param},
            "v1": {"enabled": True, "wrapping": "token"},
        },
    )
    made.start()
    made.well()
    wait_for(lambda: made.plugin.events("local KEK"))
    return made


def wrapping(rig):
    """That of v2."""
    return rig.plugin.config["apis"]["v2"]["wrapping"]


def by_token(rig):
    """What the token wrapped."""
    key_id, deks = rig.plugin.status().key_id, [secrets.token_bytes(32)] * 8
    return [Kept(dek, rig.plugin.v1_encrypt(dek), key_id) for dek in deks]


def assert_served(rig, load):
    """What needs no token never failed, and the token wraps again where it should."""
    if wrapping(rig) == "software":
        assert [] == load.failures("Decrypt")
    assert "closed" == rig.admin()["breaker"]
    kind = Record.decode(rig.plugin.encrypt(b"dek").ciphertext).header.kind
    assert (wrapping(rig) == "software") is (kind == Kind.DEK_BY_LOCAL_KEK)


@each_wrapping
@pytest.mark.parametrize("fault", [killed, all_killed, logged_out, all_sessions_hang])
def test_no_encrypt_fails(rig, fault):
    """What a local KEK can do goes on; what only the token can do fails, and returns.

    In software the first is every Encrypt, and the Decrypt of what it made; under
    fallback every Encrypt.
    """
    load = under_load(rig, fault, SECONDS, by_token(rig))

    assert [] == load.failures("Encrypt")
    assert_served(rig, load)
    if fault is killed:
        assert [] == load.failures()
    if fault is all_sessions_hang:
        assert load.failures(OLD)


@each_wrapping
def test_outage(rig):
    """The same while the token is away for long enough to be known to be away."""

    def outage(rig):
        rig.hsm.take_away()
        wait_for(lambda: rig.admin()["state"] == "degraded")
        time.sleep(OUTAGE_SECONDS)
        rig.hsm.put_back()

    load = under_load(rig, outage, SECONDS, by_token(rig))

    assert [] == load.failures("Encrypt")
    assert load.failures(OLD)
    assert_served(rig, load)
