"""API server, clients and operator while the token is unavailable, with KMS v2.

The table of docs/software-wrapping.md, line by line, on a real kube-apiserver, and what
that logs, which is in docs/operations.md.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.system.e2e.node import (
    DEK,
    KINDS,
    LOCAL,
    NOTICED,
    READYZ,
    TOKEN,
    ClusterNode,
    kind_of,
)
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

ANOTHER_KEY = "a" * 26
GONE = "the last current key is not on the token"
SENTENCE = "run hsm-kms check on the node"
FAILED = "kms plugin failed health check probe"
IN_SOFTWARE = "; writes continue with a local KEK"


@pytest.fixture(scope="module")
def node(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[ClusterNode]:
    """A cluster; each test begins with `begin`."""
    with running_world(binaries, new_folder()) as world:
        world.api.start(world.encryption("v2"), "-v=2")
        yield ClusterNode(world)


def test_software_serves_the_restart_of_an_api_server(node):
    """In `software` a restarted API server reads and writes; Status stays ok."""
    node.begin("software")
    cold = node.plugin.encrypt_v1(DEK)
    node.fresh()
    before = node.writes()

    with node.plugin.outage():
        node.turns("degraded")
        node.api.restart()
        during = node.writes()

        assert ("ok", "degraded") == (node.plugin.healthz(), node.state())
        assert (200, b"ok") == node.api.get(READYZ)
        assert FAILED not in node.logged()
        assert {before, during} == node.lists()
        assert f"text of {before}" == node.reads(before)
        assert [LOCAL, LOCAL] == list(map(node.stored, [before, during]))

        assert TOKEN is kind_of(cold)
        assert grpc.StatusCode.UNAVAILABLE is node.decrypts(cold)
        assert node.plugin.healthz().endswith(SENTENCE + IN_SOFTWARE)
        assert ("degraded", LOCAL) == (node.state(), node.encrypts())
    node.recovers(before, during)
    assert DEK == node.decrypts(cold)


def test_fallback_goes_on_writing(node):
    """In `fallback` a restarted API server writes, but does not read older Secrets."""
    node.begin("fallback")
    node.fresh()
    before = node.writes()

    with node.plugin.outage():
        node.turns("degraded")
        assert ("ok", LOCAL) == (node.plugin.healthz(), node.encrypts())
        assert f"text of {before}" == node.reads(before)

        node.api.restart(ready=False)
        wait_for(
            "the refusal of a cold seed",
            lambda: "the token is not ready" in node.reads(before),
            timeout=NOTICED,
        )
        # That was a client's call that failed: there is no grace any more.
        assert node.plugin.healthz().endswith(SENTENCE + IN_SOFTWARE)
        assert set() == node.lists()
        assert 500 == node.api.get("/readyz?exclude=kms-providers")[0]
        during = node.writes()
        assert [TOKEN, LOCAL] == list(map(node.stored, [before, during]))

        node.api.restart(ready=False)
        node.says(SENTENCE + IN_SOFTWARE)
        assert f"text of {during}" == node.reads(during)
        assert node.state() == "degraded"
    node.recovers(before, during)


def test_token_says_why_not_and_stops_writes_when_told(node):
    """In `token` Encrypt fails, and `stop_writes_after` makes Status fail."""
    node.begin("token", v1="software")
    wait_for(
        "v1", lambda: kind_of(node.plugin.encrypt_v1(DEK)) is LOCAL, timeout=NOTICED
    )
    warm = node.plugin.encrypt_v1(DEK)
    cold = node.plugin.encrypt(DEK).ciphertext
    node.fresh()
    before = node.writes()

    with node.plugin.outage():
        node.turns("failed")
        assert node.plugin.healthz().endswith(SENTENCE)
        assert grpc.StatusCode.UNAVAILABLE is node.encrypts()
        assert grpc.StatusCode.UNAVAILABLE is node.decrypts(cold)
        assert DEK == node.decrypts(warm)
        node.logs("`token`: the token is unavailable")
        during = node.writes()
        assert f"text of {before}" == node.reads(before)

        node.plugin.configure(health={"stop_writes_after": "1s"})
        wait_for(
            "UNAVAILABLE from Status",
            lambda: not node.plugin.server()["status_available"],
            timeout=NOTICED,
        )
        with pytest.raises(grpc.RpcError) as refusal:
            node.plugin.status()
        assert grpc.StatusCode.UNAVAILABLE is refusal.value.code()
        node.logs("`health.stop_writes_after` has passed")
    node.recovers(before, during)


@pytest.mark.parametrize("wrapping", ["software", "fallback"])
def test_grace_and_max_offline(node, wrapping):
    """Healthz is ok for `grace`; Encrypt works until `max_offline`."""
    node.begin(wrapping)
    with node.plugin.outage():
        node.turns("degraded")
        assert ("ok", LOCAL) == (node.plugin.healthz(), node.encrypts())
        node.plugin.configure(health={"grace": "1s"})
        wait_for("message", lambda: node.plugin.healthz() != "ok", timeout=NOTICED)
        assert node.plugin.healthz().endswith(SENTENCE + IN_SOFTWARE)
        assert ("degraded", LOCAL) == (node.state(), node.encrypts())
        if wrapping == "software":  # the other one need not be waited for, too
            node.logs("`software`, `fallback`: longer than `health.grace`")

        node.plugin.configure(local_keys={"max_offline": "1s"})
        node.turns("failed")
        assert node.plugin.healthz().endswith(SENTENCE)
        assert grpc.StatusCode.UNAVAILABLE is node.encrypts()
        during = node.writes()
    node.recovers(during)
    node.wraps(KINDS[wrapping])


def test_a_plugin_that_is_restarted_in_an_outage(node):
    """A plugin restarted in an outage announces its last key_id; writes go on."""
    node.begin("software")
    node.fresh()
    before = node.writes()
    record = node.plugin.encrypt(DEK).ciphertext
    key_id = node.plugin.status().key_id

    with node.plugin.outage():
        node.turns("degraded")
        node.plugin.restart(ok=False)
        wait_for("failed", lambda: node.state() == "failed", timeout=NOTICED)
        assert key_id == node.plugin.status().key_id
        assert grpc.StatusCode.UNAVAILABLE is node.encrypts()
        assert grpc.StatusCode.UNAVAILABLE is node.decrypts(record)
        during = node.writes()
        assert {before, during} == node.lists()
        node.logs("the plugin was restarted in the outage")

        node.plugin.stop()
        shutil.rmtree(node.plugin.state_dir)
        node.plugin.start(ok=False)
        assert "starting" == node.state()
        node.logs("the plugin was restarted in the outage without its state directory")
        after = node.writes()
    node.recovers(before, during, after)
    assert DEK == node.decrypts(record)


def test_a_plugin_that_never_reached_its_token(new_folder):
    """A plugin that never reached its token fails Status until it does."""
    plugin = Plugin(new_folder() / "plugin")
    try:
        with plugin.token.away():
            plugin.start(ok=False)
            with pytest.raises(grpc.RpcError) as refusal:
                plugin.status()
            assert grpc.StatusCode.UNAVAILABLE is refusal.value.code()
            assert "starting" == plugin.server()["state"]
        wait_for("ok", lambda: plugin.healthz() == "ok", timeout=NOTICED)
    finally:
        plugin.stop()


def test_a_local_kek_does_not_stand_in_for_a_key_that_is_gone(node):
    """If the current key is lost, Encrypt fails in `software`, too."""
    node.begin("software")
    record = node.plugin.encrypt(DEK).ciphertext
    node.plugin.stop()
    node.plugin.configure(keys={"current": ANOTHER_KEY})
    node.plugin.start(ok=False)
    wait_for("sentence", lambda: GONE in node.plugin.healthz(), timeout=NOTICED)

    assert "failed" == node.state()
    node.logs("the current key is lost, rolled back, or forbidden by `keys.policy`")
    assert grpc.StatusCode.FAILED_PRECONDITION is node.encrypts()
    assert DEK == node.decrypts(record)
    assert f"text of {(name := node.writes())}" == node.reads(name)


def test_a_change_of_wrapping_needs_no_rewrite(node):
    """Secrets of every wrapping mode are read; a new key_id re-encrypts all."""
    node.begin("token")
    node.fresh()
    names = [node.writes()]
    for wrapping in ("software", "fallback"):
        node.plugin.configure(apis={"v2": {"enabled": True, "wrapping": wrapping}})
        node.wraps(KINDS[wrapping])
        node.api.restart()
        names.append(node.writes())

        assert set(names) == node.lists()

    assert [TOKEN, LOCAL, TOKEN] == list(map(node.stored, names))
    node.plugin.configure(
        apis={"v2": {"enabled": True, "wrapping": "software"}}, keys={"suffix": "later"}
    )
    wait_for(
        "the new key_id",
        lambda: node.plugin.status().key_id.endswith(".later"),
        timeout=NOTICED,
    )
    node.api.restart()
    node.api.rewrite_secrets()
    assert [LOCAL] * 3 == list(map(node.stored, names))
