"""The counters after each fault: every number is exactly what the fault caused.

One worker with one session, no inspections but those that a fault causes, and requests
of a length that no canary has.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from hsm_kms.api.rpc import kms_v2_pb2
from hsm_kms.ipc.values import KeyRef
from hsm_kms.token.breaker import TRIP_AFTER
from tests.harness.administrator import Destroy, change
from tests.harness.forged import forge
from tests.harness.plugin import code_of
from tests.harness.softhsm import PIN
from tests.harness.wait import patient, wait_for, wait_quiet
from tests.system.conformance.clients import stopped
from tests.system.faults.observed import NO_CANARY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.faults.observed import ObservedServer

DEK = NO_CANARY
OTHER = "a" * 26  # a key_id that no key has
REQUESTS = 16
WRONG = "not-the-PIN-0815"

_COUNTER = re.compile(r"^hsm_kms_(\w+)_total(\{.*\})?$")
_VALUE = re.compile(r'\w+="(?!sha256:)([^"]+)"')
_DEVICE = "C_Encrypt len=77 rv=0x30"
_ENCRYPTED = {"requests OK v2.Encrypt", "dek_operations v2.Encrypt token"}
_ONCE = dict.fromkeys({*_ENCRYPTED, "token_calls encrypt"}, 1)
_RESTARTED = {"logins ok": 1}


class Case(NamedTuple):
    """A fault, and what it adds to the counters.

    Args:
        fault: Causes it, and waits until it is over.
        added: What it adds to each counter, by name and labels.
    """

    fault: Callable[[ObservedServer], None]
    added: dict[str, float]


def encrypt(rig):
    """Encrypt; return the name of the status code."""
    return code_of(lambda: rig.plugin.encrypt(DEK))


def served(rig):
    """Encrypt and decrypt."""
    sealed = rig.plugin.encrypt(DEK)
    rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)


def foreign(rig):
    """Decrypt what another token encrypted."""
    assert "FAILED_PRECONDITION" == code_of(lambda: rig.plugin.decrypt(*forge(DEK)))


def another_key_id(rig):
    """Decrypt under another key_id than that of the record."""
    sealed = rig.plugin.encrypt(DEK)
    code = code_of(lambda: rig.plugin.decrypt(sealed.ciphertext, OTHER))
    assert "INVALID_ARGUMENT" == code


def tampered(rig):
    """Decrypt a record with another tag."""
    sealed = rig.plugin.encrypt(DEK)
    bad = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
    code = code_of(lambda: rig.plugin.decrypt(bad, sealed.key_id))
    assert "INVALID_ARGUMENT" == code


def malformed(rig):
    """Decrypt no record, and encrypt nothing."""
    assert "INVALID_ARGUMENT" == code_of(lambda: rig.plugin.decrypt(b"x", OTHER))
    assert "INVALID_ARGUMENT" == code_of(lambda: rig.plugin.v1_decrypt(b"x"))
    assert "INVALID_ARGUMENT" == code_of(lambda: rig.plugin.encrypt(b""))


def device(rig):
    """Let the token fail once."""
    rig.shim.set(f"{_DEVICE} count=1")
    assert "UNAVAILABLE" == encrypt(rig)


def session(rig):
    """Let the session be gone: the worker repeats the request in a new one."""
    rig.shim.set("C_Encrypt len=77 count=1 rv=0xb3")
    assert "OK" == encrypt(rig)


def logged_out(rig):
    """Log the worker out: the request is repeated on another worker."""
    rig.shim.set("logged_out")
    assert "OK" == encrypt(rig)
    rig.workers()


def canary(rig):
    """Let the canary after a failed request fail too, and once more."""
    rig.shim.set(f"{_DEVICE} count=1", "C_Encrypt len=32 count=2 rv=0x30")
    assert "UNAVAILABLE" == encrypt(rig)
    wait_for(lambda: rig.ends("canary"))
    rig.workers()


def breaker(rig):
    """Let requests fail until the breaker opens; the canary that closes it waits."""
    rig.shim.set(_DEVICE, "C_Encrypt len=32 held")
    assert ["UNAVAILABLE"] * REQUESTS == [encrypt(rig) for _ in range(REQUESTS)]
    rig.shim.clear()
    wait_for(lambda: not rig.metrics()["hsm_kms_breaker_open"])


def killed(rig):
    """Kill the worker."""
    rig.kill_served()
    wait_for(lambda: rig.ends("lost"))
    rig.workers()


def away(rig):
    """Take the token away and kill the worker; put it back after two failed starts."""
    rig.hsm.take_away()
    rig.shim.set("C_Initialize skip=2 held")
    rig.kill_served()
    wait_for(lambda: rig.ends("start") == 2)
    rig.hsm.put_back()
    rig.shim.clear()
    rig.workers()


def pin_rejected(rig):
    """Change the PIN file to a wrong PIN and kill the worker."""
    Path(rig.plugin.config["token"]["pin_file"]).write_text(WRONG)
    rig.kill_served()
    wait_for(lambda: rig.admin()["pin"] == "rejected")


def key_gone(rig):
    """Destroy the only key."""
    [key] = rig.admin()["keys"]
    change(rig.hsm, Destroy(KeyRef(key["label"], bytes.fromhex(key["cka_id"]))))
    assert "OK" != encrypt(rig)
    wait_for(lambda: "last current" in rig.admin()["healthz"])


def exhausted(rig):
    """Stop the worker: one request has its session, others wait in vain."""
    request = kms_v2_pb2.EncryptRequest(plaintext=DEK, uid="slow")
    with stopped(rig.workers()):
        slow = rig.plugin.v2.Encrypt.future(request, timeout=patient(60))
        wait_for(lambda: rig.admin()["sessions"]["idle"] == 0)
        codes = rig.plugin.encrypt_at_once(DEK, REQUESTS)
    slow.result()
    assert ["RESOURCE_EXHAUSTED"] * REQUESTS == codes


def applied(rig):
    """Change the configuration."""
    rig.plugin.merge("health", {"grace": "61s"})
    rig.plugin.write_config()
    wait_for(lambda: rig.plugin.events("configuration applied"))


def rejected(rig):
    """Write a configuration that is rejected, and write the former one again."""
    rig.plugin.merge("scope", 7)
    rig.plugin.write_config()
    wait_for(lambda: rig.plugin.events("configuration rejected"))
    rig.plugin.merge("scope", "")
    rig.plugin.write_config()
    wait_for(lambda: rig.metrics()["hsm_kms_config_in_force"])


_FAILED = {"requests UNAVAILABLE v2.Encrypt": 1, "token_calls encrypt": 1}
_FAILED_BY_DEVICE = _FAILED | {"token_errors CKR_DEVICE_ERROR": 1}
_INVALID = {"requests INVALID_ARGUMENT v2.Decrypt": 1}

CASES = (
    Case(
        served,
        _ONCE
        | {"requests OK v2.Decrypt": 1, "dek_operations v2.Decrypt token": 1}
        | {"key_decrypts": 1, "token_calls decrypt": 1},
    ),
    Case(foreign, {"requests FAILED_PRECONDITION v2.Decrypt": 1}),
    Case(another_key_id, _ONCE | _INVALID),
    # SoftHSM2 answers CKR_GENERAL_ERROR for a tag that is not authentic.
    Case(
        tampered,
        _ONCE
        | _INVALID
        | {"token_calls decrypt": 1, "token_errors CKR_GENERAL_ERROR": 1},
    ),
    Case(
        malformed,
        _INVALID
        | {"requests INVALID_ARGUMENT v1.Decrypt": 1}
        | {"requests INVALID_ARGUMENT v2.Encrypt": 1},
    ),
    Case(device, _FAILED_BY_DEVICE),
    Case(session, _ONCE),
    Case(
        logged_out,
        _ONCE
        | _RESTARTED
        | {"token_calls encrypt": 2, "token_errors login": 1}
        | {"worker_ends login": 1, "session_waits": 1},
    ),
    Case(canary, _FAILED_BY_DEVICE | _RESTARTED | {"worker_ends canary": 1}),
    Case(
        breaker,
        {
            "requests UNAVAILABLE v2.Encrypt": REQUESTS,
            "token_calls encrypt": TRIP_AFTER,
            "token_errors CKR_DEVICE_ERROR": TRIP_AFTER,
            "breaker_openings": 1,
        },
    ),
    Case(killed, _RESTARTED | {"worker_ends lost": 1}),
    Case(away, _RESTARTED | {"worker_ends lost": 1, "worker_ends start": 2}),
    Case(
        pin_rejected,
        {"worker_ends lost": 1, "worker_ends start": 1, "logins rejected": 1},
    ),
    Case(
        key_gone,
        _FAILED | _RESTARTED | {"token_errors no-key": 1, "worker_ends canary": 1},
    ),
    Case(
        exhausted,
        _ONCE | {"requests RESOURCE_EXHAUSTED v2.Encrypt": REQUESTS},
    ),
    Case(applied, {"config_reloads applied": 1}),
    Case(rejected, {"config_reloads rejected": 1}),
)


def counters(rig) -> Counter[str]:
    """Return the counters of what happens, by name and values of the labels.

    Status is left out, which tests ask for while they wait, and so are seconds and the
    functions of the module.
    """
    return Counter(
        {
            " ".join((found[1], *_VALUE.findall(found[2] or ""))): value
            for name, value in rig.metrics().items()
            if (found := _COUNTER.match(name))
            and not found[1].startswith("pkcs11_")
            and not found[1].endswith("_seconds")
            and "v2.Status" not in name
        }
    )


@pytest.fixture
def rig(make_rig, directory):
    """Provide a healthy server that does nothing by itself."""
    pin = directory / "own-pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    made = make_rig(
        token={
            "pin_file": str(pin),
            "workers": 1,
            "sessions_per_worker": 1,
            # Longer than a new worker takes, shorter than a client of the test waits.
            "session_wait": "5s",
            "call_timeout": "30s",
            "hang_timeout": "60s",
            "start_timeout": "60s",
        },
        health={"interval": "1h"},
        keys={"discover": "1h"},
        local_keys={"verify_wraps": False},
        apis={"v2": {"enabled": True}, "v1": {"enabled": True, "wrapping": "token"}},
    )
    made.start()
    made.well()
    made.workers()
    made.wait_inspected()
    return made


@pytest.mark.parametrize("case", CASES, ids=[case.fault.__name__ for case in CASES])
def test_counters(rig, case):
    """A fault adds to the counters what it caused, and nothing to any other counter."""
    before = counters(rig)
    case.fault(rig)
    wait_for(lambda: counters(rig) - before >= Counter(case.added))
    after = wait_quiet(lambda: counters(rig))

    assert case.added == dict(after - before)
    if not any(name.startswith("worker_ends") for name in case.added):
        rig.wait_calls_counted()
