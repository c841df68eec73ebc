"""`hsm-kms rotation` finds out what is done, whoever did it, and does what is left."""

from __future__ import annotations

import json
import signal

import pytest

from hsm_kms.cli.rotation.steps import STEP_NAMES
from tests.harness.etcd_server import EtcdServer
from tests.harness.wait import patient, wait_for
from tests.system.rotation.cluster import Cluster
from tests.system.rotation.guided import OBJECTS, PASSES, Guide

KEYS = {"keys": {"discover": "1s"}}


@pytest.fixture
def guide(make_nodes):
    """Provide the command on two nodes, whose API servers ask all the time."""
    nodes = make_nodes(0.0, 0.0, **KEYS)
    with EtcdServer({b"/registry/x": b"k8s"}) as etcd, Cluster(nodes) as cluster:
        yield Guide(nodes, etcd)
        assert ([], []) == (cluster.failures, cluster.wrong)


def test_from_beginning_to_end(guide):
    """The command stops for what is done elsewhere, and goes on when that is done."""
    old = guide.old
    stopped = guide.run_over_time("start", *guide.names())
    status = guide.status()
    new = status["new_key"]

    assert 1 == stopped.code, stopped
    assert f"{OBJECTS} of {OBJECTS + 1} objects in " in stopped.err
    assert "hint: run `hsm-kms migrate` where your kubectl is; then" in stopped.err
    assert ("stopped", old) == (status["state"], status["old_key"])
    assert "continues with re-encrypt" in status["next"]
    assert 1 == guide.run("status").code
    refused = guide.run("start", *guide.names())
    assert "is not finished\nhint: run `hsm-kms rotation resume" in refused.err

    guide.write()
    done = guide.run("resume")
    assert 0 == done.code, done
    assert done.out.endswith(f"{new} has replaced {old}\n")
    assert [{new: "current"}] * 2 == [each.keys() for each in guide.nodes]
    status = guide.status()
    assert ("finished", 0) == (status["state"], guide.run("status").code)
    assert list(STEP_NAMES) == [each["step"] for each in status["steps"]]
    assert {"done"} == {each["state"] for each in status["steps"]}
    again = guide.run("resume")
    assert (0, "this rotation was finished at ") == (again.code, again.out[:30])


def test_key_that_was_generated_already(guide):
    """A pending key is taken: a run that was killed may have generated it.

    So is one that has become current since, if --old names the key before it.
    """
    old = guide.old
    made = guide.node.cli("keys", "rotate", "-o", "json")
    new = json.loads(made.stdout)["key_id"]
    looked = guide.run("start", "--dry-run", *guide.names())
    assert 0 == looked.code, looked
    assert f"done   generate    {new} becomes current at 20" in looked.out
    assert looked.out.endswith("nothing was changed\n")
    assert not guide.journal.exists()

    stopped = guide.run_over_time("start", *guide.names())
    assert 1 == stopped.code, stopped
    assert (old, new) == (guide.read()["old_key"], guide.read()["new_key"])
    by_hand = guide.run("start", *guide.names(), "--abandon", "--old", old, "--dry-run")
    assert f"done   generate    {new} is current on this node\n" in by_hand.out
    assert "done   switch      all 2 nodes use " in by_hand.out


def test_node_that_is_behind(guide):
    """A node that does not use the new key is named, and waited for by `resume`."""
    behind = guide.nodes[1]
    unreadable = guide.run("start", *guide.names(), "--node", "127.0.0.1:1")
    assert "hsm-kms: 127.0.0.1:1: the metrics cannot be read" in unreadable.err
    assert not guide.journal.exists()

    made = guide.node.cli("keys", "rotate", "-o", "json")
    new = json.loads(made.stdout)["key_id"]
    for node in guide.nodes:
        node.wait_state(new, "pending")
    guide.node.clock.move(PASSES["switch"])
    guide.node.wait_state(new, "current")
    gave_up = guide.run("start", *guide.names(), "--wait", "0s", "--old", guide.old)
    port = behind.http_port()
    assert f"gave up waiting: 1 of 2 nodes use {new}; 127.0.0.1:{port}: " in gave_up.err
    assert "hint: run `hsm-kms rotation resume" in gave_up.err

    behind.clock.move(PASSES["switch"])
    behind.wait_state(new, "current")
    guide.write()
    done = guide.run_over_time("resume")
    assert 0 == done.code, done
    assert [{new: "current"}] * 2 == [each.keys() for each in guide.nodes]


def test_interrupted(guide):
    """Ctrl-C while a step waits is recorded; the command says how to go on."""
    with guide.running("start", *guide.names()) as process:
        wait_for(lambda: guide.began("switch", process))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=patient(60))

    assert 130 == process.returncode, err
    assert "✓ generate: " in out
    assert "hsm-kms: interrupted\nhint: run `hsm-kms rotation resume" in err
    status = guide.status()
    assert ("stopped", "interrupted") == (status["state"], status["stopped"])
    assert "continues with switch" in status["next"]
