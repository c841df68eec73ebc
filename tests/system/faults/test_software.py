"""With local KEKs no Encrypt fails, whatever happens to the token under load."""

from __future__ import annotations

import secrets

import pytest

from hsm_kms.wrapping.record import Kind, Record
from tests.harness.wait import wait_for
from tests.system.faults.load import OLD, Kept
from tests.system.faults.observed import QUICK
from tests.system.faults.test_recovery import (
    all_killed,
    all_sessions_hang,
    killed,
    logged_out,
    under_load,
)

REFUSED = 'hsm_kms_requests_total{code="UNAVAILABLE",method="v2.Decrypt"}'

each_wrapping = pytest.mark.parametrize("rig", ["software", "fallback"], indirect=True)


@pytest.fixture
def rig(make_rig, request):
    """A server on the shim with this wrapping mode in v2, and `token` in v1."""
    made = make_rig(
        token=QUICK,
        apis={
            "v2": {"enabled": True, "wrapping": request.param},
            "v1": {"enabled": True, "wrapping": "token"},
        },
    )
    made.start()
    made.well()
    wait_for(lambda: made.plugin.events("local KEK created"))
    return made


def wrapping(rig):
    """Return the wrapping mode of v2."""
    return rig.plugin.config["apis"]["v2"]["wrapping"]


def by_token(rig):
    """Make records by the token."""
    key_id, deks = rig.plugin.status().key_id, [secrets.token_bytes(32)] * 8
    return [Kept(dek, rig.plugin.v1_encrypt(dek), key_id) for dek in deks]


def assert_served(rig, load):
    """Assert that requests without token calls never failed, and the token is back."""
    if wrapping(rig) == "software":
        assert [] == load.failures("Decrypt")
    assert "closed" == rig.admin()["breaker"]
    kind = Record.decode(rig.plugin.encrypt(b"dek").ciphertext).header.kind
    assert (wrapping(rig) == "software") is (kind == Kind.DEK_BY_LOCAL_KEK)


@each_wrapping
@pytest.mark.parametrize("fault", [killed, all_killed, logged_out, all_sessions_hang])
def test_no_encrypt_fails(rig, fault):
    """Whatever happens to the token, no Encrypt fails in `software` and `fallback`.

    In `software` no Decrypt of a record by a local KEK fails either.
    """
    load = under_load(rig, fault, by_token(rig))

    assert [] == load.failures("Encrypt")
    assert_served(rig, load)
    if fault is killed:
        assert [] == load.failures()
    if fault is all_sessions_hang:
        assert load.failures(OLD)


@each_wrapping
def test_outage(rig):
    """No Encrypt fails while the token is unavailable, and records by it fail."""

    def outage(rig):
        rig.hsm.take_away()
        wait_for(lambda: rig.admin()["state"] == "degraded")
        wait_for(lambda: rig.metrics().get(REFUSED))
        rig.hsm.put_back()

    load = under_load(rig, outage, by_token(rig))

    assert [] == load.failures("Encrypt")
    assert load.failures(OLD)
    assert_served(rig, load)
