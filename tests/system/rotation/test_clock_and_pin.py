"""A wrong clock neither locks a node out of its token nor makes it switch early."""

from __future__ import annotations

import os
import signal
import time

import pytest

from hsm_kms.clock import when
from tests.harness.clock.driver import YEAR
from tests.harness.softhsm import PIN
from tests.harness.wait import wait_for
from tests.system.rotation.cluster import Cluster
from tests.system.rotation.nodes import (
    AHEAD,
    LOOKS_SECONDS,
    announce_key,
    forward,
    make_kek,
)

DEK = b"d" * 32
DOUBT = "a pending key has a doubtful activation time"


@pytest.fixture
def own_pin(directory):
    """Return a PIN file that no server has tried, written by the right clock."""
    path = directory / "own-pin"
    path.touch(mode=0o600)
    path.write_text(PIN + "\n")
    return path


def test_ahead(make_node, own_pin):
    """A node whose clock is a year ahead tries an unproven PIN."""
    node = make_node(skew=YEAR, token={"pin_file": str(own_pin)})
    node.start().wait_healthz("ok")

    assert b"dek" == node.decrypt(*_sealed(node))


def test_behind(make_node, own_pin):
    """A node whose clock is a year behind tries it too, and reports the clock."""
    node = make_node(skew=-YEAR, token={"pin_file": str(own_pin)})
    node.start()
    wait_for(lambda: node.events("token worker started"))
    wait_for(lambda: "check the clock of this node" in node.admin()["healthz"])
    node.clock.set(0)
    node.wait_healthz("ok")

    assert [] == node.events("token worker cannot start")
    assert b"dek" == node.decrypt(*_sealed(node))


def test_boot(make_node):
    """A node that has served boots a year behind, and its token comes a day later.

    It announces the key of before all the while, and is well with the token, also if
    the clock is set only then.
    """
    node = make_node()
    node.start().well()
    sealed = _sealed(node)
    key_id = node.status().key_id
    node.stop()
    node.cut_off()
    node.clock.set(-YEAR)
    node.start()
    wait_for(lambda: node.admin()["state"] == "failed")
    node.clock.move(24 * 3600)
    assert key_id == node.status().key_id
    node.reconnect()
    node.wait_healthz("ok")
    node.clock.set(0)
    node.wait_healthz("ok")

    assert key_id == node.status().key_id == node.encrypt(DEK).key_id
    assert b"dek" == node.decrypt(*sealed)


def test_workers_die(make_node, own_pin):
    """New workers log in after the clock was set back, even with a new PIN file."""
    node = make_node(token={"pin_file": str(own_pin)})
    node.start().well()  # a worker that is killed in its login can break the token
    node.clock.move(-YEAR)
    own_pin.write_text(PIN + "\n")  # another identity: its PIN is unproven
    before = set(node.worker_pids())
    started = len(node.events("token worker started"))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    # healthz stays ok for a while, so it does not say when the new workers serve.
    wait_for(lambda: len(node.events("token worker started")) >= started + 2)
    node.wait_healthz("ok")

    assert b"dek" == node.decrypt(*_sealed(node))


def test_far_ahead_at_a_rotation(make_nodes):
    """A node that is 20 min ahead does not switch to a new key before the others."""
    right, ahead = nodes = make_nodes(0.0, 1200.0)
    first = right.status().key_id
    activation = int(right.clock.now() + AHEAD)
    key_id = announce_key(nodes, make_kek(right.hsm, activation))
    (warning,) = wait_for(lambda: ahead.events(DOUBT))
    time.sleep(LOOKS_SECONDS)

    assert first == ahead.status().key_id == ahead.encrypt(DEK).key_id
    assert (key_id, when(activation)) == (warning["key_id"], warning["activation"])
    assert warning["activation"] < warning["missed_at"] <= when(ahead.clock.now())
    assert "this node's clock is ahead" in ahead.cli("status").stdout
    assert [] == right.events(DOUBT)

    ahead.clock.set(0)
    wait_for(lambda: [when(activation)] == coming(ahead))
    with Cluster(nodes) as clients:
        forward(nodes, activation, 2)
        clients.wait_written(key_id, {0, 1})
    clients.check({key_id: activation})
    assert [] == clients.failures


def test_made_elsewhere(make_node, empty_hsm):
    """If the clock is right a restart ends the doubt about a key made elsewhere."""
    node = make_node(on=empty_hsm)
    make_kek(empty_hsm, node.clock.now() - 7200, PRIVATE=True)
    node.start().well()
    first = node.status().key_id
    make_kek(empty_hsm, node.clock.now() - 3600, PRIVATE=True)
    wait_for(lambda: node.events(DOUBT))
    time.sleep(LOOKS_SECONDS)
    assert first == node.status().key_id
    node.stop()

    node.start().wait_healthz("ok")
    wait_for(lambda: node.status().key_id != first)


def coming(node):
    """Return when the pending keys become current."""
    return [each["current_from"] for each in node.admin()["keys"] if is_pending(each)]


def is_pending(key):
    """Return True if /status calls the key pending."""
    return key["state"] == "pending"


def _sealed(node):
    sealed = node.encrypt(b"dek")
    return sealed.ciphertext, sealed.key_id
