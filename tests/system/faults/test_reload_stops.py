"""A server that is told to stop ends, whatever its reload is waiting for."""

from __future__ import annotations

from tests.harness.processes import alive
from tests.harness.wait import wait_for


def reload(rig, **keys):
    """Change the keys section; the server notices by itself."""
    rig.plugin.config["keys"] |= keys
    rig.plugin.write_config()


def test_during_a_trial(rig):
    """SIGTERM ends a server whose new workers hang before they have started."""
    rig.shim.set("C_Initialize hang")
    reload(rig, suffix="two")
    wait_for(lambda: not rig.admin()["config"]["in_force"])
    wait_for(lambda: len(rig.worker_pids) > 2)
    workers = rig.worker_pids

    assert 0 == rig.plugin.stop()
    wait_for(lambda: not any(alive(pid) for pid in workers))
    assert [] == rig.plugin.events("configuration applied")


def test_while_the_old_workers_leave(rig):
    """SIGTERM ends a server that waits for Status to announce another key."""
    rig.plugin.status()
    reload(rig, suffix="two")
    wait_for(lambda: rig.plugin.events("configuration applied"))
    workers = rig.worker_pids

    assert 0 == rig.plugin.stop()
    wait_for(lambda: not any(alive(pid) for pid in workers))
    assert not rig.plugin.socket.exists()
