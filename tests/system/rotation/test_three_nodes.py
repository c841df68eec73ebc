"""Three control-plane nodes on one token switch to a new key."""

from __future__ import annotations

import pytest

from hsm_kms.keys.pending import LATE_WAIT_SECONDS
from tests.harness.clock.driver import YEAR
from tests.harness.wait import wait_for
from tests.system.rotation.cluster import Cluster
from tests.system.rotation.nodes import AHEAD, announce_key, forward, make_kek

LEAD = 2.0  # seconds to write under the old key, before the first node switches
SKEW = 60.0  # seconds between two nodes' clocks: far more than a test takes
ALL_PAST = -(2 * SKEW + 1)
EVERY = {0, 1, 2}


@pytest.fixture
def cluster(make_nodes):
    """Three nodes whose clocks are a minute apart, and a pending key."""
    nodes = make_nodes(-SKEW, 0.0, SKEW)
    first = nodes[0].status().key_id
    activation = int(nodes[1].clock.now() + AHEAD)
    second = announce_key(nodes, make_kek(nodes[0].hsm, activation))
    return nodes, first, second, activation


def test_skewed_clocks(cluster):
    """Each node switches once, by its own clock, and all read all records meanwhile."""
    nodes, first, second, activation = cluster
    with Cluster(nodes) as clients:
        clients.wait_written(first, EVERY)
        forward(nodes, activation, LEAD)
        order = []
        for node in (2, 1, 0):
            clients.wait_written(second, {node})
            order.append(clients.switched(second))
            clients.wait_more()
            forward(nodes, activation + SKEW * len(order), 1)

    clients.check({second: activation})
    assert [{2}, {1, 2}, EVERY] == order
    assert [] == clients.failures
    assert {"ok"} == {one.healthz for one in clients.said}
    assert [[first, second]] * 3 == [clients.order(node) for node in EVERY]
    switched = [nodes[each].events("current key")[-1] for each in EVERY]
    assert {(second, first)} == {(one["key_id"], one["before"]) for one in switched}
    assert {second: "current", first: "decrypt-only"} == nodes[0].keys()


def test_cut_off(cluster):
    """A node that cannot reach the token says so, keeps the old key, and catches up."""
    nodes, first, second, activation = cluster
    with Cluster(nodes) as clients:
        clients.wait_written(first, EVERY)
        clients.excuse(0, away=True)
        nodes[0].cut_off()
        wait_for(lambda: nodes[0].healthz() not in {"ok", "UNAVAILABLE"})
        forward(nodes, activation, LEAD)
        clients.wait_written(second, {2})
        forward(nodes, activation, ALL_PAST)
        clients.wait_written(second, {1, 2})
        assert nodes[0].clock.now() > activation
        status = nodes[0].status()
        nodes[0].reconnect()
        nodes[0].wait_healthz("ok")
        clients.excuse(0, away=False)
        clients.wait_written(second, EVERY)

    clients.check({second: activation})
    assert first == status.key_id
    assert "token" in status.healthz
    assert nodes[0].events("health")[-1]["state"] == "ok"
    assert "failed" in {one["state"] for one in nodes[0].events("health")}
    assert {0} == {node for node, _, _ in clients.failures}
    assert [[first, second]] * 3 == [clients.order(node) for node in EVERY]


def test_clock_goes_back_before(cluster):
    """A node whose clock is set back by a year keeps the old key."""
    nodes, first, second, activation = cluster
    nodes[0].clock.move(-YEAR)
    with Cluster(nodes) as clients:
        forward(nodes, activation, -(SKEW + 1))
        clients.wait_written(second, {1, 2})
        clients.wait_more()
        kept, state = clients.switched(second), nodes[0].keys()[second]
        nodes[0].clock.move(YEAR + 2 * SKEW)
        clients.wait_written(second, EVERY)

    clients.check({second: activation})
    assert ({1, 2}, "pending") == (kept, state)
    assert [] == clients.failures
    assert {"ok"} == {one.healthz for one in clients.said}
    assert [[first, second]] * 3 == [clients.order(node) for node in EVERY]


def test_clock_goes_back_after(cluster):
    """A clock set back by a year makes no old key current, not even after a restart."""
    nodes, first, second, activation = cluster
    with Cluster(nodes[:2]) as clients:
        forward(nodes, activation, ALL_PAST)
        clients.wait_written(second, {0, 1})
        nodes[0].clock.move(-YEAR)
        clients.wait_more(10)
    written = nodes[1].encrypt(b"dek")
    nodes[0].stop()
    nodes[0].start()
    nodes[0].wait_healthz("ok")
    after = nodes[0].status().key_id

    assert [] == clients.wrong
    assert [] == clients.failures
    assert [[first, second]] * 2 == [clients.order(node) for node in (0, 1)]
    assert second == after == nodes[0].encrypt(b"dek").key_id
    assert b"dek" == nodes[0].decrypt(written.ciphertext, written.key_id)


def test_comes_late(make_nodes):
    """A node that first sees the key after its activation time waits, but decrypts."""
    nodes = early, late = make_nodes(0.0, 0.0)
    first = late.status().key_id
    late.stop()
    activation = int(early.clock.now() + AHEAD)
    second = announce_key([early], make_kek(early.hsm, activation))
    forward(nodes, activation, -1)
    wait_for(lambda: early.status().key_id == second)
    written = early.encrypt(b"dek")
    late.start().wait_healthz("ok")
    kept = late.status().key_id, late.encrypt(b"dek").key_id, late.keys()[second]
    opened = late.decrypt(written.ciphertext, written.key_id)
    late.clock.move(LATE_WAIT_SECONDS)
    wait_for(lambda: late.status().key_id == second)

    assert (first, first, "pending") == kept
    assert b"dek" == opened
    assert second == late.encrypt(b"dek").key_id
