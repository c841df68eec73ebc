"""An overloaded HSM: each C call takes long, every request still works."""

from __future__ import annotations

import threading

import pytest

from tests.harness.plugin import code_of
from tests.harness.wait import patient, wait_for
from tests.system.rotation.nodes import AHEAD, announce_key, forward, make_kek

MILLISECONDS = patient(250)
CALL_TIMEOUT = patient(1000)  # an encryption takes half of it, a canary more
LONG = 280.0  # an inspection takes some ten seconds
DEK = b"d" * 32


class Statuses:
    """Ask for Status again and again, in a thread.

    Args:
        node: The server.

    Attributes:
        healthz: What Status said.
    """

    def __init__(self, node):
        self.healthz = set()
        self._node = node
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.1):
            self.healthz.add(self._node.healthz())


@pytest.mark.slow
@pytest.mark.timeout(patient(2 * LONG))
def test_rotation_on_a_slow_token(make_node, shim):
    """Status stays ok, `status` says "slow", a new key is found and becomes current."""
    node = make_node(
        token={
            "module": str(shim.module),
            "workers": 1,
            "sessions_per_worker": 1,
            "call_timeout": f"{CALL_TIMEOUT:g}ms",
        },
    )
    node.config["token"]["env"] |= shim.env
    node.write_config()
    node.start().well()
    first, now = node.encrypt(DEK), node.clock.now()
    old = announce_key([node], make_kek(node.hsm, now + 2 * AHEAD))
    assert DEK == node.decrypt(first.ciphertext, first.key_id)

    with Statuses(node) as statuses:
        shim.set(f"* sleep={MILLISECONDS:g}")
        wait_for(lambda: "token: slow" in node.cli("status").stdout, LONG)
        assert "hsm_kms_token_slow 1.0" in node.page("/metrics")[1]
        cka_id = make_kek(node.hsm, now + AHEAD)
        new = wait_for(lambda: held(node, cka_id), LONG)
        assert "OK" == code_of(lambda: node.encrypt(DEK))
        forward([node], now + AHEAD, -1)
        wait_for(lambda: node.status().key_id == new, LONG)
        # A session looks for the key when it uses it first, which may take too long.
        wait_for(lambda: code_of(lambda: node.encrypt(DEK)) == "OK", LONG)
        assert new == node.encrypt(DEK).key_id
        assert DEK == node.decrypt(first.ciphertext, first.key_id)

    assert {"ok"} == statuses.healthz
    assert "pending" == node.keys()[old]
    assert {} == node.admin()["workers"]["ended"]
    assert [] == [*node.events("canary failed"), *node.events("keys not read in time")]
    shim.clear()
    wait_for(lambda: "hsm_kms_token_slow 0.0" in node.page("/metrics")[1])


def held(node, cka_id):
    """Return the key_id of a key that the server holds, None if it does not yet."""
    keys = {each["cka_id"]: each["key_id"] for each in node.admin()["keys"]}
    return keys.get(cka_id.hex())
