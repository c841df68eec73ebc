"""A wrong clock does not lock the node out of its token."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.clock.driver import YEAR
from tests.harness.softhsm import PIN
from tests.harness.wait import wait_for


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


def test_workers_die(make_node, own_pin):
    """New workers log in after the clock was set back, even with a new PIN file."""
    node = make_node(token={"pin_file": str(own_pin)})
    node.start().wait_healthz("ok")
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


def _sealed(node):
    sealed = node.encrypt(b"dek")
    return sealed.ciphertext, sealed.key_id
