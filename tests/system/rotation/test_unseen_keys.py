"""Keys that this node, or some of its workers, have not seen yet."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections import Counter

from hsm_kms.health.fresh_worker import REQUESTED_SECONDS
from hsm_kms.ipc.fingerprints import fingerprint_of
from hsm_kms.wrapping.record import Kind
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.conformance.clients import (
    STRANGER,
    connected,
    said,
    shaped,
    workers_of,
)
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
FLOOD = 500
REFUSED = "FAILED_PRECONDITION"
SELDOM = {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}


def on_shim(make_node, shim, **sections):
    """A running node behind the shim."""
    node = make_node(token={"module": str(shim.module)}, **sections)
    node.config["token"]["env"] |= shim.env
    node.write_config()
    return node.start().well()


def test_fresh_worker(make_node, shim):
    """Workers that miss a key which a fresh one sees are replaced; no request fails.

    A request under an unknown key makes a fresh worker look earlier.
    """
    shim.set("frozen")
    node = on_shim(make_node, shim, health={"interval": "200ms"})
    first, before = node.status().key_id, set(node.worker_pids())
    activation = int(node.clock.now() + AHEAD)
    with Load(node, 2) as load, Cluster([node]) as clients:
        load.wait_well()
        cka_id = make_kek(node.hsm, activation)
        unknown = shaped(Kind.DEK_BY_TOKEN, STRANGER)
        assert REFUSED == code_of(lambda: node.decrypt(unknown, STRANGER))
        second = announce_key([node], cka_id)
        wait_for(lambda: node.admin()["workers"]["ended"].get("recycled", 0) >= 2)
        wait_for(lambda: not before & set(node.worker_pids()))
        forward([node], activation, 1)
        clients.wait_written(second, {0})
        load.wait_well()

    assert [] == [*load.failures(), *load.wrong, *clients.failures]
    clients.check({second: activation})
    assert [first, second] == clients.order(0)
    assert {"recycled"} == set(node.admin()["workers"]["ended"])


def test_unknown_key_id(make_nodes, make_node, shim):
    """A record under a key that this node has not listed yet makes it list the keys."""
    (writer,) = make_nodes(0.0)
    reader = on_shim(make_node, shim, **SELDOM)
    ObservedServer(plugin=reader, hsm=reader.hsm, shim=shim).wait_inspected()
    activation = int(writer.clock.now() + AHEAD)
    second = announce_key([writer], make_kek(writer.hsm, activation))
    forward([writer], activation, -1)
    wait_for(lambda: writer.status().key_id == second)
    sealed = writer.encrypt(DEK)
    v1 = writer.v1_encrypt(b"ping")

    before = reader.keys()
    assert second not in before
    assert DEK == reader.decrypt(sealed.ciphertext, sealed.key_id)
    assert b"ping" == reader.v1_decrypt(v1)
    assert "pending" == reader.keys()[second]


def test_forged_key_ids(make_node, shim):
    """Records under unknown keys harm no other request, and cause few looks."""
    node = on_shim(make_node, shim, **SELDOM)
    sealed, pids = node.encrypt(DEK), set(node.worker_pids())
    finds, began = shim.calls("C_FindObjectsInit"), time.monotonic()
    seconds = REQUESTED_SECONDS + 1
    with Load(node, 2) as load:
        codes = asyncio.run(_flood(node, seconds))
    looks = 1 + (time.monotonic() - began) / REQUESTED_SECONDS
    each = 2  # AES keys under the label, and the HMAC key beside the one there is
    visit = 4 * each  # a worker that starts asks more

    assert {REFUSED} == set(codes)
    assert sum(codes.values()) > FLOOD
    assert [] == [*load.failures(), *load.wrong]
    assert shim.calls("C_FindObjectsInit") - finds <= looks * (each + visit)
    assert pids <= set(node.worker_pids())
    assert {} == node.admin()["workers"]["ended"]
    assert "closed" == node.admin()["breaker"]
    assert DEK == node.decrypt(sealed.ciphertext, sealed.key_id)


async def _flood(node, seconds):
    codes = Counter()
    until = time.monotonic() + seconds

    async def one(client):
        while time.monotonic() < until or sum(codes.values()) <= FLOOD:
            key_id = fingerprint_of(secrets.token_bytes(16))
            record = shaped(Kind.DEK_BY_TOKEN, key_id)
            codes[(await said(client.decrypt(record, key_id))).code] += 1

    async with connected(node, 4) as clients:
        await asyncio.gather(*(one(client) for client in clients for _ in range(4)))
    return codes


def test_worker_stands_still(make_nodes):
    """A key that one worker has not proven is not switched to yet."""
    (node,) = make_nodes(0.0, token={"call_timeout": "1500ms", "hang_timeout": "10m"})
    first = node.status().key_id
    activation = int(node.clock.now() + AHEAD)
    second = announce_key([node], make_kek(node.hsm, activation))
    stopped = min(workers_of(node))  # not one that lists the keys, and ends
    os.kill(stopped, signal.SIGSTOP)
    forward([node], activation, -1)
    wait_for(lambda: node.events("canary failed"))
    kept, state = node.status().key_id, node.keys()[second]
    wait_for(lambda: "OK" == code_of(lambda: node.encrypt(DEK)))
    os.kill(stopped, signal.SIGCONT)
    wait_for(lambda: node.status().key_id == second)

    assert (first, "pending") == (kept, state)
    assert second == node.encrypt(DEK).key_id


def test_key_fails_on_this_node(make_node, shim):
    """A key whose canary fails is not switched to; the old one stays current."""
    node = on_shim(make_node, shim)
    first = node.status().key_id
    activation = int(node.clock.now() + AHEAD)
    # Its flags are right and it wraps, but what it wrapped cannot be read back.
    cka_id = make_kek(node.hsm, activation, DECRYPT=False)
    second = key_id_of(node, cka_id)
    node.clock.move(AHEAD + 1)
    node.wait_state(second, "refused")
    time.sleep(LOOKS_SECONDS)

    assert ("ok", first) == (node.healthz(), node.status().key_id)
    assert "refused" == node.keys()[second]
    assert first == node.encrypt(DEK).key_id
