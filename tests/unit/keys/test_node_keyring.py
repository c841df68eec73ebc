"""The keyring of a node: what is current, what is announced, what is remembered."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from structlog.testing import capture_logs

from hsm_kms.errors import KeyLostError, KeyNotFoundError, KeyReusedError
from hsm_kms.keys.trial import PASSED, UNTRIED, Trial
from hsm_kms.state_dir.directory import StateDir
from tests.unit.keys.key_samples import LABEL, NOW, OLD, A, B, C, Seen, key
from tests.unit.keys.keyring_node import FIRST, NEXT, SERIAL, THIRD, KeyringNode


@pytest.fixture
def node(tmp_path):
    """A node that has never read a key."""
    return KeyringNode(tmp_path / "state")


def test_before_anything_is_known(node):
    """There is no key_id to give, and no keyring."""
    assert "" == node.keyring.key_id
    assert node.keyring.last_key_id is None
    assert node.keyring.announced_ring is None
    assert node.keyring.seconds_to_next(node.now) is None


def test_first_key(node):
    """The first key is current at once, for v1 and v2, and remembered."""
    node.sees(FIRST)

    assert [A] * 3 == [node.current, node.announced, node.keyring.key_id]
    wanted = {
        "key_id": A,
        "cka_id": b"a".hex(),
        "token_serial": SERIAL,
        "label": LABEL,
        "since": "2027-01-15T08:00:00Z",
        "born_here": True,
        "canary": None,
    }
    assert {"version": 1, "last_key": wanted, "former": []} == json.loads(
        node.file.read_text()
    )


def test_next_process(node):
    """A new process gives the key_id of the last one before it has seen a key."""
    node.sees(FIRST).serve()

    assert A == node.keyring.key_id
    assert A == node.sees(FIRST, key(B, 2, born_here=False)).current


def test_switch_at_the_time(node):
    """At its time the next key is current; the one before is remembered as former."""
    node.sees(FIRST, NEXT).after(9.5).sees(FIRST, NEXT)
    assert (A, (A, [])) == (node.current, node.kept)
    assert 0.5 == node.keyring.seconds_to_next(node.now)

    node.after(0.5).sees(FIRST, NEXT)
    assert (B, (B, [A])) == (node.current, node.kept)
    assert node.keyring.seconds_to_next(node.now) is None
    (former,) = StateDir(node.directory).former_keys()
    assert "2027-01-15T08:00:00Z" == former.since
    assert "2027-01-15T08:00:10Z" == former.until


def test_seconds_to_next(node):
    """The next activation time counts; one from before the latest look does not."""
    due = key(C, NOW - 900)
    node.sees(FIRST).sees(FIRST, due, NEXT, try_key=lambda _: UNTRIED)

    assert A == node.current
    assert 10.0 == node.keyring.seconds_to_next(node.now)


def test_seconds_to_a_time_that_has_just_passed(node):
    """A key whose time came since the latest look is due at once, and once only."""
    began = node.now
    node.sees(FIRST, NEXT).after(10.5)

    assert 0.0 == node.keyring.seconds_to_next(began)
    assert node.keyring.seconds_to_next(node.now) is None
    node.after(-1)  # the clock is set back while the server waits
    assert 0.5 == node.keyring.seconds_to_next(node.now + 1)


def test_a_trial_that_failed(node):
    """A due key is warned of once, with the reason, and not before a trial failed."""
    with capture_logs() as logs:
        node.sees(FIRST, NEXT).after(3600)
        node.sees(FIRST, NEXT, try_key=lambda _: UNTRIED)
        assert "warning" not in {log["log_level"] for log in logs}
        for _ in range(2):
            failed = Trial(passed=False, failure="C_Encrypt: CKR_DEVICE_ERROR")
            node.sees(FIRST, NEXT, try_key=lambda _, failed=failed: failed)

    assert A == node.current
    assert [
        {
            "event": "a pending key cannot be used yet",
            "key_id": B,
            "reason": "C_Encrypt: CKR_DEVICE_ERROR",
            "log_level": "warning",
        }
    ] == [log for log in logs if log["log_level"] == "warning"]


def test_v2_switches_when_status_says_so(node):
    """v1 follows the activation time; v2 encrypts under the announced key."""
    node.sees(FIRST, NEXT).keyring.announce(A)
    node.after(10).sees(FIRST, NEXT)
    assert (B, A) == (node.current, node.announced)
    assert (B, [A]) == node.kept  # before anyone was told

    node.keyring.announce(A)  # a state of health made before the switch
    assert A == node.announced
    node.keyring.announce(node.keyring.key_id)
    assert B == node.announced


def test_v2_before_the_first_status(node):
    """Before the first Status v2 follows the activation time, too."""
    node.sees(FIRST, NEXT).after(10).sees(FIRST, NEXT)

    assert B == node.announced


def test_announced_ring_holds_new_keys(node):
    """A key that was found since the last Status decrypts."""
    node.sees(FIRST).keyring.announce(A)
    node.sees(FIRST, NEXT)

    assert NEXT == node.keyring.announced_ring.for_decrypt(B, NEXT.cipher)


def test_announced_key_is_gone(node):
    """If the announced key is gone v2 encrypts under no other key."""
    node.sees(FIRST, NEXT).keyring.announce(A)
    node.after(10).sees(FIRST, NEXT).sees(NEXT)
    with pytest.raises(KeyNotFoundError, match=f"Status gave last, {A}, cannot"):
        node.keyring.announced_ring.for_encrypt()

    node.keyring.announce(node.keyring.key_id)
    assert B == node.announced


def test_fault_is_that_of_both(node):
    """Without the current key neither API encrypts; the keys held still decrypt."""
    node.sees(FIRST).keyring.announce(A)
    node.sees(NEXT)

    assert A == node.keyring.key_id
    for ring in (node.keyring.ring, node.keyring.announced_ring):
        with pytest.raises(KeyLostError):
            ring.for_encrypt()
        assert NEXT == ring.for_decrypt(B, NEXT.cipher)
    assert (A, []) == node.kept


def test_announce_without_a_key(node):
    """There is nothing to announce, and nothing happens."""
    node.keyring.announce("")
    node.sees().keyring.announce("")

    with pytest.raises(KeyNotFoundError):
        node.keyring.announced_ring.for_encrypt()


def test_not_usable_yet(node):
    """A key that does not work on every worker waits; the next best one does not."""
    node.sees(FIRST, NEXT, THIRD).after(30)
    node.sees(FIRST, NEXT, THIRD, try_key=lambda _: UNTRIED)
    assert (A, [B, C]) == (node.current, pending(node))

    def only_next(one):
        return PASSED if one == NEXT else UNTRIED

    node.sees(FIRST, NEXT, THIRD, try_key=only_next)
    assert (B, [C]) == (node.current, pending(node))
    node.sees(FIRST, NEXT, THIRD)
    assert (C, (C, [A, B])) == (node.current, node.kept)


def pending(node):
    return [each.key.key_id for each in node.keyring.ring.pending]


def test_only_the_next_key_is_tried(node):
    """The key that stays, or is named, need not be proven anew to stay."""
    asked = []

    def try_key(one):
        asked.append(one.key_id)
        return UNTRIED

    node.sees(FIRST, try_key=try_key).sees(FIRST, NEXT, try_key=try_key)
    assert [] == asked
    node.serve(current=B).sees(FIRST, NEXT, try_key=try_key)
    assert ([], B) == (asked, node.current)


def test_preview(node):
    """A preview saves nothing."""
    seen = Seen().by(OLD, FIRST)

    assert FIRST == node.keyring.preview(seen, ()).current
    assert node.keyring.ring is None
    assert not node.file.exists()


def test_frozen(node):
    """A frozen keyring switches to no other key."""
    node.sees(FIRST, NEXT).keyring.announce(A)
    node.keyring.freeze()
    node.after(10).sees(FIRST, NEXT)

    assert (A, A, (A, [])) == (node.current, node.announced, node.kept)


def test_frozen_before_the_first_key(node):
    """A frozen keyring writes nothing into the state directory."""
    node.keyring.freeze()
    node.sees(FIRST)

    assert not node.file.exists()


def test_never_a_key_id_of_old(node):
    """A former current key needs a new key_id to become current again."""
    node.sees(FIRST, NEXT).after(10).sees(FIRST, NEXT)
    node.serve(current=A).sees(FIRST, NEXT)
    assert KeyReusedError is type(node.keyring.ring.fault)
    assert (B, (B, [A])) == (node.keyring.key_id, node.kept)

    renamed = key(A, 1, suffix="two")
    node.serve(current=A, suffix="two").sees(renamed, key(B, NOW + 10, suffix="two"))
    assert (A + ".two", (A + ".two", [A, B])) == (node.current, node.kept)


def test_events(node):
    """A pending key is logged once, with its time; a switch with the key before."""
    with capture_logs() as logs:
        node.sees(FIRST, NEXT).sees(FIRST, NEXT).after(10).sees(FIRST, NEXT)
        node.sees(FIRST, NEXT)

    assert [
        {"event": "current key", "key_id": A, "before": None},
        {
            "event": "pending key",
            "key_id": B,
            "current_from": "2027-01-15T08:00:10Z",
        },
        {"event": "current key", "key_id": B, "before": A},
    ] == [{k: v for k, v in log.items() if k != "log_level"} for log in logs]


def test_warns_of_an_imported_key(node):
    """A key that somebody may know is used only with a warning."""
    with capture_logs() as logs:
        node.sees(key(A, born_here=False))

    assert A == node.current
    assert ("warning", A) == (logs[0]["log_level"], logs[0]["key_id"])
    assert "was imported" in logs[0]["event"]


def test_warns_once_of_a_doubtful_time(node):
    """A key that appears long after its time is warned of, with both times."""
    node.sees(FIRST)
    held = Seen().by(OLD, FIRST, now=NOW + 600)
    held.by(OLD, FIRST, NEXT, now=node.after(601).now)
    with capture_logs() as logs:
        for _ in range(2):
            asyncio.run(node.keyring.adopt(held, (), lambda _: PASSED, SERIAL))

    (warning,) = [log for log in logs if log["log_level"] == "warning"]
    assert ("2027-01-15T08:00:10Z", "2027-01-15T08:10:00Z") == (
        warning["activation"],
        warning["missed_at"],
    )


def test_warns_once_of_a_foreign_key(node):
    """A key that nothing names is logged once, with the line that would trust it."""
    planted = key(B, born_here=False)
    with capture_logs() as logs:
        node.sees(FIRST).sees(FIRST, planted).sees(FIRST, planted)

    (warning,) = [log for log in logs if log["log_level"] == "warning"]
    assert ("a foreign key is on the token", B) == (warning["event"], warning["key_id"])
    assert "keys.foreign: decrypt" in warning["hint"]


def test_a_foreign_key_that_was_current(node):
    """An imported key that was the only one stays trusted after it is replaced."""
    imported = key(A, born_here=False)
    node.sees(imported).serve(current=B).sees(imported, key(B, 1)).serve(current=B)
    node.sees(imported, key(B, 1))

    assert (B, [A]) == node.kept
    assert imported == node.keyring.ring.for_decrypt(A, imported.cipher)


def test_a_thousand_keys_due(node):
    """A thousand keys that are due and not proven are judged in milliseconds."""
    many = [key(f"{n:a>26}", n + 2, cka_id=b"%d" % n) for n in range(1000)]
    node.sees(FIRST)
    began = time.thread_time()
    node.sees(FIRST, *many, try_key=lambda _: UNTRIED)

    assert A == node.current
    assert time.thread_time() - began < 2  # it takes a twentieth of a second
