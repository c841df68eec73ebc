"""Which keys become current at their activation time; no other key does harm."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import grpc
import pytest

from hsm_kms.keys.key_id import make_cka_id
from hsm_kms.keys.pending import LATE_WAIT_SECONDS
from tests.harness.forged import forge
from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module
from tests.harness.token_keys import LABEL, MATERIAL
from tests.harness.wait import wait_for
from tests.system.conformance.tokens import import_kek
from tests.system.faults.load import Load
from tests.system.faults.observed import ObservedServer
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
TURNS = 100  # about three seconds

# Makes a key, shows it for a moment, destroys it, and so on until its input ends.
_CHURN = """
import os, select, sys, time, pkcs11
module, token, pin, label = sys.argv[1:]
capabilities = pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT
template = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False}
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as s:
    turns = 0
    while not select.select([0], [], [], 0.005)[0]:
        key = s.generate_key(
            pkcs11.KeyType.AES, 256, id=os.urandom(8), label=label, store=True,
            capabilities=capabilities, template=template,
        )
        key.destroy()
        turns += 1
        print(turns, flush=True)
"""


def test_one_time(make_nodes):
    """All nodes choose the same of two keys with one activation time."""
    nodes = make_nodes(0.0, 0.0)
    first = nodes[0].status().key_id
    activation = int(nodes[0].clock.now() + AHEAD)
    made = [make_kek(nodes[0].hsm, activation) for _ in range(2)]
    ids = sorted(announce_key(nodes, cka_id) for cka_id in made)
    with Cluster(nodes) as clients:
        forward(nodes, activation, 2)
        clients.wait_written(ids[1], {0, 1})
        clients.wait_more()

    clients.check(dict.fromkeys(ids, activation))
    assert [[first, ids[1]]] * 2 == [clients.order(node) for node in (0, 1)]
    assert [] == clients.failures
    assert "decrypt-only" == nodes[0].keys()[ids[0]]


def test_clock_that_jumps_past_the_time(make_nodes):
    """A node whose clock passes the time by an hour switches, and warns of nothing."""
    (node,) = make_nodes(0.0)
    activation = node.clock.now() + AHEAD
    key_id = announce_key([node], make_kek(node.hsm, activation))
    node.clock.move(AHEAD + 3600)
    wait_for(lambda: node.status().key_id == key_id)

    assert "a pending key cannot be used yet" not in node.log()


@pytest.mark.parametrize("ahead", [-3600, AHEAD], ids=["past", "ahead"])
def test_planted(make_nodes, ahead):
    """A planted key opens no record, and never becomes current by itself.

    A forged record, made in software from the known value, is refused until the
    operator trusts the key.
    """
    (node,) = make_nodes(0.0)
    first = node.status().key_id
    activation = int(node.clock.now() + ahead)
    cka_id = make_cka_id(activation)
    import_kek(node.hsm, MATERIAL, cka_id)
    record, planted = forge(DEK)
    node.wait_state(planted, "foreign")
    node.clock.move(max(0, ahead) + 3600)
    time.sleep(LOOKS_SECONDS)
    node.stop()
    node.start().wait_healthz("ok")

    with pytest.raises(grpc.RpcError, match="was not generated on the token"):
        node.decrypt(record, planted)
    wait_for(lambda: node.events("a foreign key is on the token"))
    assert {first: "current", planted: "foreign"} == node.keys()
    observed = ObservedServer(plugin=node, hsm=node.hsm, shim=None)
    assert 1 == observed.metrics()['hsm_kms_keys{state="foreign"}']
    assert first == node.status().key_id == node.encrypt(DEK).key_id
    for command in (["check"], ["keys", "list"]):
        assert "set keys.foreign: decrypt" in node.cli(*command).stdout
    assert f"foreign {planted}: decrypts nothing" in node.cli("status").stdout

    node.reload(foreign="decrypt")
    assert DEK == node.decrypt(record, planted)
    assert {first: "current", planted: "decrypt-only"} == node.keys()
    node.reload(foreign="refuse", also_known_as={planted: cka_id.hex()})
    assert DEK == node.decrypt(record, planted)


def test_offending(make_nodes):
    """A non-compliant key that appears later does no harm."""
    (node,) = make_nodes(0.0)
    first = node.status().key_id
    activation = int(node.clock.now() + AHEAD)
    odd = key_id_of(node, make_kek(node.hsm, activation, EXTRACTABLE=True))
    good = announce_key([node], make_kek(node.hsm, activation + 60))
    with Cluster([node]) as clients:
        clients.wait_written(first, {0})
        forward([node], activation + 60, 2)
        clients.wait_written(good, {0})

    clients.check({good: activation + 60})
    assert [] == clients.failures
    assert [first, good] == clients.order(0)
    assert "foreign" == node.keys()[odd]


def test_without_partner(make_node, empty_hsm, shim):
    """An AES key without its HMAC key does not count until the pair is complete."""
    shim.set("no_gcm")
    token = {"module": str(shim.module)}
    node = make_node(on=empty_hsm, token=token)
    node.config["token"]["env"] |= shim.env
    node.write_config()
    assert 0 == node.cli("keys", "generate").returncode
    node.start().wait_healthz("ok")
    first = node.status().key_id
    activation = int(node.clock.now() + AHEAD)
    cka_id = make_kek(empty_hsm, activation)
    key_id_of(node, cka_id)
    node.clock.move(AHEAD + 60)
    time.sleep(LOOKS_SECONDS)
    alone = node.status()
    _add_partner(empty_hsm, cka_id)
    wait_for(lambda: "pending" in node.keys().values())
    node.clock.move(LATE_WAIT_SECONDS)
    wait_for(lambda: node.status().key_id != first)

    assert ("ok", first) == (alone.healthz, alone.key_id)
    second = node.encrypt(DEK)
    assert second.key_id == node.status().key_id
    assert DEK == node.decrypt(second.ciphertext, second.key_id)


def _add_partner(hsm, cka_id):
    hsm.pkcs11_tool(
        *("--keygen", "--key-type", "GENERIC:32", "--label", f"{LABEL}-hmac"),
        *("--id", (cka_id + b"h").hex(), "--private", "--sensitive"),
        "--usage-sign",
    )


def test_vanishing(make_nodes):
    """Keys that disappear while they are listed disturb no request and no worker."""
    (node,) = make_nodes(0.0, health={"interval": "100ms"})
    first = node.status().key_id
    command = [sys.executable, "-c", _CHURN, softhsm_module(), TOKEN_LABEL, PIN, LABEL]
    env = {**os.environ, **node.hsm.env}
    with (
        subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as churn,
        Load(node, 2) as load,
    ):
        for turn in churn.stdout:
            if int(turn) > TURNS and len(load.answers) > TURNS:
                break
        churn.communicate("stop\n")

    assert [] == [*load.failures(), *load.wrong]
    assert ("ok", first) == (node.healthz(), node.status().key_id)

    assert set(node.admin()["workers"]["ended"]) <= {"recycled"}
    wait_for(lambda: list(node.keys()) == [first])
