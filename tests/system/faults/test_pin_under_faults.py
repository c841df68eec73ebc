"""Whatever goes wrong, C_Login is not called so often that the token locks the PIN."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module
from tests.harness.wait import wait_for, wait_quiet

LONG = os.environ.get("HSM_KMS_LONG") == "1"
FAULTY_SECONDS = 60.0 if LONG else 10.0
# Windows in which a further C_Login would be seen; a slow machine cannot fail them.
QUIET_SECONDS = 4.0
TWO_STARTS_SECONDS = 120.0
STABLE_SECONDS = 2.0  # a PIN file is used once it has been unchanged for so long
WRONG = "not-the-PIN-0815"
NEW_PIN = "9021-New-PIN"
# CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED
LOW_FLAGS = (0x1_0000, 0x2_0000, 0x4_0000)


@pytest.fixture
def own_pin(directory):
    """Return a PIN file of the test's own, with the right PIN."""
    path = directory / "own-pin"
    path.touch(mode=0o600)
    path.write_text(PIN)
    return path


@pytest.fixture
def many(make_rig, own_pin):
    """A server of four workers on the shim, not started.

    It looks so rarely that no fresh worker logs in to list the keys, and takes a slow
    call for stuck so late that no spare worker logs in beside the four.
    """
    token = {"pin_file": str(own_pin), "workers": 4, "sessions_per_worker": 2}
    times = {"call_timeout": "30s", "hang_timeout": "60s", "start_timeout": "60s"}
    return make_rig(token=token | times, health={"interval": "1m"})


def kill_all(rig):
    """SIGKILL every worker that has not left by itself meanwhile."""
    for pid in rig.plugin.worker_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all_seen(rig):
    """SIGKILL every worker, and wait until the server has noticed."""
    pids = rig.workers()
    before = rig.ends("lost")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: rig.ends("lost") >= before + len(pids))


def commands(rig, count=3):
    """Run `check` several times at once; return the exit codes."""
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(rig.plugin.cli, "check", spawn=True) for _ in range(count)]
        return [run.result().returncode for run in runs]


def test_proven(make_rig, own_pin, shim):
    """No process calls C_Login twice, and processes start at a bounded rate."""
    rig = make_rig(token={"pin_file": str(own_pin), "workers": 3})
    rig.start()
    rig.well()
    faults = (
        "C_Encrypt count=1 segv",
        "C_Login count=2 rv=0x30",
        "logged_out",
        "C_Initialize count=3 rv=0x05",
        "lost",
        "C_Login count=1 segv",
        "C_OpenSession count=4 rv=0x30",
    )
    rounds = 0
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        while time.monotonic() < began + FAULTY_SECONDS or rounds < 3:
            shim.set(faults[rounds % len(faults)])
            run = pool.submit(rig.plugin.cli, "check", spawn=True)
            time.sleep(0.5)
            rig.kill_served()
            time.sleep(0.5)
            shim.clear()
            run.result()
            rounds += 1
    seconds = time.monotonic() - began
    rig.well(200)  # after many kills the last workers start seldom

    logins, processes = shim.calls("C_Login"), shim.calls("C_Initialize")
    print(f"{logins} C_Login in {processes} processes, {rounds} faults")  # noqa: T201
    assert 3 < logins <= processes
    assert processes <= 30 * seconds
    assert "proven" == rig.admin()["pin"]


def test_unproven_and_wrong(many, own_pin, shim):
    """A wrong PIN is tried once, however many workers and commands there are."""
    own_pin.write_text(WRONG)
    many.start()
    assert {1} == set(commands(many))
    wait_for(lambda: "rejected" in many.admin()["detail"])
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        kill_all(many)
        assert {1} == set(commands(many, 2))
    many.plugin.stop()
    many.start()
    wait_for(lambda: "rejected" in many.admin()["detail"])

    assert 1 == shim.calls("C_Login")
    assert "rejected" == many.admin()["pin"]


@pytest.mark.parametrize("how", ["hang", "segv"])
def test_died_inside_login(many, shim, how):
    """A process that dies inside C_Login uses up one of two tries."""
    many.plugin.config["token"]["start_timeout"] = "6s"
    many.plugin.write_config()
    shim.set(f"C_Login {how}")
    time.sleep(STABLE_SECONDS)
    many.start()
    wait_for(lambda: shim.calls("C_Login") == 2, TWO_STARTS_SECONDS)
    wait_for(lambda: "rejected" in many.admin()["detail"], TWO_STARTS_SECONDS)
    assert {1} == set(commands(many))
    time.sleep(QUIET_SECONDS / 2)
    assert 2 == shim.calls("C_Login")

    shim.clear()
    assert 0 == many.plugin.cli("token", "retry-pin").returncode
    many.well()
    assert "proven" == many.admin()["pin"]


def test_flaps_at_the_first_login(many, shim):
    """A token that fails at the first two logins needs no person afterwards."""
    time.sleep(STABLE_SECONDS)
    shim.set("C_Login count=2 rv=0x5")
    many.start()
    wait_for(lambda: "tried again after a pause" in many.admin()["detail"])
    many.well()

    assert "proven" == many.admin()["pin"]


def test_wrong_pin_by_another_name(many, own_pin, shim):
    """A token that calls a wrong PIN a general error, but counts it, is believed."""
    own_pin.write_text(WRONG)
    time.sleep(STABLE_SECONDS)
    shim.set("C_Login after rv=0x5")
    many.start()
    wait_for(lambda: "rejected" == many.admin()["pin"])
    assert {1} == set(commands(many))
    time.sleep(QUIET_SECONDS / 2)

    assert 1 == shim.calls("C_Login")


@pytest.mark.parametrize("flags", LOW_FLAGS)
def test_few_tries_left(many, shim, flags):
    """With few tries left an unproven PIN is not tried before `token retry-pin`."""
    shim.set(f"token_flags={flags:#x}")
    time.sleep(STABLE_SECONDS)
    many.start()
    wait_for(lambda: "retry-pin" in many.admin()["detail"])
    # The answer is remembered: no process is started each second to ask again.
    wait_quiet(lambda: shim.calls("C_Initialize"), QUIET_SECONDS)
    assert {1} == set(commands(many, 2))
    assert 0 == shim.calls("C_Login")

    assert 0 == many.plugin.cli("token", "retry-pin").returncode
    many.well()
    processes = 1 + 4
    assert processes == shim.calls("C_Login")


def change(rig, old, new):
    """Change the user's PIN on the token."""
    rig.hsm.run(
        *("pkcs11-tool", "--module", softhsm_module()),
        *("--token-label", TOKEN_LABEL, "--login", "--pin", old),
        *("--change-pin", "--new-pin", new),
    )


def test_changed(many, own_pin, shim):
    """A PIN that is changed on the token and in the file needs no restart."""
    many.start()
    many.well()
    old = many.plugin.encrypt(b"dek")
    before = shim.calls("C_Login")
    change(many, PIN, NEW_PIN)
    own_pin.write_text(NEW_PIN)
    assert b"dek" == many.plugin.decrypt(old.ciphertext, old.key_id)
    kill_all_seen(many)
    many.well()

    assert b"dek" == many.plugin.decrypt(old.ciphertext, old.key_id)
    assert before + 4 == shim.calls("C_Login")
    assert "proven" == many.admin()["pin"]
    assert [] == [pin for pin in (PIN, NEW_PIN) if pin in many.plugin.log()]


def test_changed_on_the_token_first(many, own_pin, shim):
    """A worker that starts between the two changes costs one try and a retry-pin."""
    many.start()
    many.well()
    before = shim.calls("C_Login")
    change(many, PIN, NEW_PIN)
    kill_all(many)
    wait_for(lambda: "rejected the PIN" in many.plugin.healthz())
    assert {1} == set(commands(many, 2))
    time.sleep(QUIET_SECONDS / 4)
    assert before + 1 == shim.calls("C_Login")

    own_pin.write_text(NEW_PIN)
    wait_for(lambda: "retry-pin" in many.admin()["detail"])
    assert before + 1 == shim.calls("C_Login")
    assert 0 == many.plugin.cli("token", "retry-pin").returncode
    many.well()
    assert before + 2 + 4 == shim.calls("C_Login")
