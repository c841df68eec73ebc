"""Which mechanism is found on which token, and that all records stay readable."""

from __future__ import annotations

import pytest

from hsm_kms.wrapping.record import Algorithm, Record
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for

DEK = b"d" * 32
GCM = {
    "caller": ("", "aes-gcm-caller-iv", 12),
    "token": ("gcm_iv=token", "aes-gcm-token-iv", 12),
    "token, zeros demanded": ("gcm_iv=token strict", "aes-gcm-token-iv", 12),
    "appended": ("gcm_iv=append", "aes-gcm-appended-iv", 16),
    "appended, no IV demanded": ("gcm_iv=append strict", "aes-gcm-appended-iv", 16),
}


def begin(make_rig, shim, mode, **sections):
    """Start a server on a token of this kind, with a state directory of its own."""
    shim.set(*([mode] if mode else []))
    rig = make_rig(**sections)
    rig.start()
    rig.well()
    return rig


def counted(rig):
    """Return how often each key has wrapped, as the nonce budget counts it."""
    found = rig.metrics().items()
    return [count for name, count in found if name.startswith("hsm_kms_kek_wraps{")]


@pytest.mark.parametrize("manner", GCM)
def test_found(make_rig, shim, manner):
    """The probe finds out who generates the IV; no two records share one, all count."""
    mode, mechanism, length = GCM[manner]
    rig = begin(make_rig, shim, mode)
    sealed = [rig.plugin.encrypt(DEK) for _ in range(20)]
    ivs = {Record.decode(each.ciphertext).iv for each in sealed}

    assert [mechanism] == [key["mechanism"] for key in rig.admin()["keys"]]
    assert (20, {length}) == (len(ivs), {len(iv) for iv in ivs})
    assert DEK == rig.plugin.decrypt(sealed[0].ciphertext, sealed[0].key_id)
    (wraps,) = counted(rig)
    assert wraps >= 20


def test_each_reads_each(make_rig, shim):
    """Records made with one GCM mode are decrypted with every other."""
    modes = [GCM[manner][0] for manner in ("caller", "token", "appended")]
    written = []
    for mode in modes:
        rig = begin(make_rig, shim, mode)
        written.append(rig.plugin.encrypt(DEK))
        rig.plugin.stop()
    for mode in modes:
        rig = begin(make_rig, shim, mode)
        for sealed in written:
            assert DEK == rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)
        rig.plugin.stop()


def test_pair(make_rig, shim, empty_hsm):
    """Without GCM `keys generate` makes a key pair; its records outlive a change.

    Its wraps do not count: no IV of it is a nonce of AES-GCM.
    """
    shim.set("no_gcm")
    rig = make_rig(on=empty_hsm)
    assert 0 == rig.plugin.cli("keys", "generate").returncode
    rig.start()
    rig.well()
    sealed = rig.plugin.encrypt(DEK)
    assert (
        Algorithm.AES_256_CBC_HMAC_SHA256
        == Record.decode(sealed.ciphertext).header.algorithm
    )
    assert DEK == rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)
    bad = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
    assert "INVALID_ARGUMENT" == code_of(lambda: rig.plugin.decrypt(bad, sealed.key_id))
    assert [] == counted(rig)
    rig.plugin.stop()

    other = begin(make_rig, shim, "", on=empty_hsm).plugin
    again = other.encrypt(DEK)
    assert sealed.key_id != again.key_id
    assert Algorithm.AES_256_GCM == Record.decode(again.ciphertext).header.algorithm
    assert DEK == other.decrypt(sealed.ciphertext, sealed.key_id)


def test_change_is_refused(make_rig, shim):
    """After a restart another GCM mode is refused until the configuration names it."""
    rig = begin(make_rig, shim, "")
    before = rig.plugin.encrypt(DEK)
    rig.plugin.stop()
    shim.set("gcm_iv=token")
    rig.start()
    wait_for(
        lambda: "has always wrapped with aes-gcm-caller-iv" in rig.admin()["detail"]
    )
    assert "required encryption mechanism" in rig.plugin.healthz()
    assert before.key_id == rig.plugin.status().key_id
    assert "UNAVAILABLE" == code_of(lambda: rig.plugin.encrypt(DEK))
    rig.plugin.stop()

    rig.plugin.config["keys"] = {"gcm_iv": "token"}
    rig.plugin.write_config()
    rig.start()
    rig.well()
    assert DEK == rig.plugin.decrypt(before.ciphertext, before.key_id)


def test_zero_iv_is_refused(make_rig, shim):
    """A token that ignores the IV and uses zeros never gets a DEK."""
    shim.set("gcm_iv=zero")
    rig = make_rig()
    rig.start()
    wait_for(lambda: "the token used the same IV twice" in rig.admin()["detail"])

    assert "UNAVAILABLE" == code_of(lambda: rig.plugin.encrypt(DEK))


def test_corrupt_result_is_never_answered(make_rig):
    """A wrap that does not read back is an error, and the next request works.

    If a canary gets the corrupt result in place of the client, another is made.
    """
    rig = make_rig(health={"interval": "1h"}, keys={"discover": "1h"})
    rig.start()
    rig.well()

    def corrupted():
        rig.well()
        rig.plugin.encrypt(DEK)  # the session that is lent next has found its key
        rig.shim.set("corrupt=1")
        codes = [code_of(lambda: rig.plugin.encrypt(DEK)) for _ in range(3)]
        return codes if set(codes) != {"OK"} else None

    codes = wait_for(corrupted)

    assert 1 == codes.count("UNAVAILABLE")
    assert "OK" == codes[-1]
