"""Ways back: none by accident, and the ones that the configuration names."""

from __future__ import annotations

import shutil
import time

import pytest

from hsm_kms.ipc.fingerprints import fingerprint_of_cka_id
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.rotation.cluster import Cluster
from tests.system.rotation.nodes import (
    AHEAD,
    LOOKS_SECONDS,
    announce_key,
    forward,
    key_id_of,
    make_kek,
)

DEK = b"d" * 32
REJECTED_SECONDS = 100.0
REFUSED = "FAILED_PRECONDITION"


@pytest.fixture
def rotate():
    """Make nodes switch to a new key; return the key_ids before and after."""

    def rotate(nodes):
        first = nodes[0].status().key_id
        activation = int(nodes[0].clock.now() + AHEAD)
        second = announce_key(nodes, make_kek(nodes[0].hsm, activation))
        forward(nodes, activation, -1)
        for node in nodes:
            wait_for(lambda node=node: node.status().key_id == second)
        return first, second

    return rotate


def opens(node, sealed):
    """Return the code of the Decrypt of a record."""
    return code_of(lambda: node.decrypt(sealed.ciphertext, sealed.key_id))


def test_old_backup(make_nodes, rotate):
    """With a token restored from before the rotation no key is current."""
    (node,) = make_nodes(0.0)
    backup = node.hsm.tokens.with_name("backup")
    shutil.copytree(node.hsm.tokens, backup)
    old = node.encrypt(DEK)
    second = rotate([node])[1]
    new = node.encrypt(DEK)
    node.hsm.take_away()
    backup.rename(node.hsm.tokens)
    node.wait_healthz("the last current key is not on the token")
    running = node.status(), node.admin()["detail"]
    node.stop()
    node.start()
    node.wait_healthz("the last current key is not on the token")
    restarted = node.status(), node.admin()["detail"]

    for status, detail in (running, restarted):
        assert second == status.key_id
        assert second in detail
    assert REFUSED == code_of(lambda: node.encrypt(DEK))
    assert (REFUSED, "OK") == (opens(node, new), opens(node, old))
    node.hsm.tokens.rename(node.hsm.tokens.with_name("restored"))
    node.hsm.put_back()
    node.wait_healthz("ok")
    assert second == node.status().key_id == node.encrypt(DEK).key_id
    assert ("OK", "OK") == (opens(node, new), opens(node, old))


def test_retired(make_nodes, rotate):
    """A reload of keys.retired refuses records under a key, and accepts them again."""
    (node,) = make_nodes(0.0)
    old = node.encrypt(DEK)
    first, second = rotate([node])
    new, v1 = node.encrypt(DEK), node.v1_encrypt(b"ping")
    node.reload(retired=[first])
    while_retired = opens(node, old), opens(node, new), node.keys()
    kept = node.v1_decrypt(v1)
    node.reload(retired=[])

    assert (REFUSED, "OK") == while_retired[:2]
    assert {first: "retired", second: "current"} == while_retired[2]
    assert b"ping" == kept
    assert ("OK", "OK") == (opens(node, old), opens(node, new))
    assert ("ok", second) == (node.healthz(), node.status().key_id)


def test_also_known_as(make_node):
    """A record with another key_id decrypts if keys.also_known_as maps it."""
    node = make_node(keys={"fingerprint": "cka_id"})
    node.start().wait_healthz("ok")
    sealed = node.encrypt(DEK)
    (key,) = node.admin()["keys"]
    cka_id = bytes.fromhex(key["cka_id"])
    assert fingerprint_of_cka_id(cka_id) == sealed.key_id
    node.stop()
    shutil.rmtree(node.state_dir)
    node.config["keys"]["fingerprint"] = "block"
    node.write_config()
    node.start().wait_healthz("ok")
    before = opens(node, sealed)
    node.reload(also_known_as={sealed.key_id: key["cka_id"]})

    assert REFUSED == before
    assert node.status().key_id != sealed.key_id
    assert DEK == node.decrypt(sealed.ciphertext, sealed.key_id)
    node.reload(retired=[sealed.key_id])
    assert REFUSED == opens(node, sealed)


def test_back_with_a_suffix(make_nodes, rotate):
    """keys.current and a new suffix make a former key current, node by node."""
    nodes = one, other = make_nodes(0.0, 0.0)
    first, second = rotate(nodes)
    with Cluster(nodes) as clients:
        clients.wait_written(second, {0, 1})
        one.reload(current=first, suffix="two")
        clients.wait_written(f"{first}.two", {0})
        clients.wait_more()
        between = other.status()
        other.reload(current=first, suffix="two")
        clients.wait_written(f"{first}.two", {0, 1})

    assert [] == clients.wrong
    assert [] == clients.failures
    assert ("ok", second) == (between.healthz, between.key_id)
    for node in (0, 1):
        assert [second, f"{first}.two"] == clients.order(node)


def test_back_without_a_suffix(make_nodes, rotate):
    """Without a new suffix a former key cannot become current; the log says why."""
    (node,) = make_nodes(0.0, token={"start_timeout": "8s"})
    first, second = rotate([node])
    node.replace_config(current=first)
    event = "configuration rejected: the token would become unavailable"
    (told,) = wait_for(lambda: node.events(event), REJECTED_SECONDS)

    assert ("ok", second) == (node.healthz(), node.status().key_id)
    assert second == node.encrypt(DEK).key_id
    assert "suffix" in told["error"]


def test_not_shared(make_nodes):
    """With `shared: false` a new key stays pending until keys.current names it."""
    (node,) = make_nodes(0.0, token={"shared": False})
    first = node.status().key_id
    activation = int(node.clock.now() + AHEAD)
    second = key_id_of(node, make_kek(node.hsm, activation))
    node.clock.move(AHEAD + 3600)
    time.sleep(LOOKS_SECONDS)
    kept = node.status().key_id, node.keys()
    node.reload(current=second)
    wait_for(lambda: node.status().key_id == second)

    assert (first, {first: "current", second: "pending"}) == kept
    assert second == node.encrypt(DEK).key_id
