"""One state directory serves one server at a time."""

from __future__ import annotations

from tests.harness.processes import has_open
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import wait_for
from tests.unit.server.socket_tools import lock_of

WAITS = "waiting for another server to leave the state directory"


def sharing(plugin, make_plugin, **listen):
    """Return a server, not started, with the state directory of another one."""
    second = make_plugin(plugin.hsm)
    second.config["state_dir"] = str(plugin.state_dir)
    second.merge("listen", listen)
    second.write_config()
    return second


def test_two_servers(plugin, make_plugin):
    """A second server with a socket of its own says why it ends; the first goes on."""
    second = sharing(plugin, make_plugin, lock_wait="0s")

    assert 1 == second.start().wait()
    line = "hsm-kms: another hsm-kms server uses the state directory"
    assert f"{line} {plugin.state_dir}\nhint: stop it, or " in second.log()
    assert is_explained(f"{line} /path")
    assert not second.socket.exists()
    assert "ok" == plugin.healthz()


def test_the_other_leaves(plugin, make_plugin):
    """A server waits for one that leaves, as after a change of the socket's path."""
    second = sharing(plugin, make_plugin, lock_wait="1000s").start(listening=False)
    wait_for(lambda: second.events(WAITS))
    key_id = plugin.status().key_id
    plugin.stop()
    second.wait_healthz("ok")

    assert key_id == second.status().key_id


def test_sigterm_in_the_wait(plugin, make_plugin):
    """A server that waits for the state directory obeys SIGTERM at once."""
    second = sharing(plugin, make_plugin, lock_wait="1000s").start(listening=False)
    wait_for(lambda: second.events(WAITS))

    assert 0 == second.stop()
    assert "ok" == plugin.healthz()


def test_successor(plugin, make_plugin):
    """A server with the same configuration takes over the socket and the directory."""
    plugin.kill()
    second = sharing(plugin, make_plugin, socket=str(plugin.socket), lock_wait="0s")
    second.socket = plugin.socket
    second.start().wait_healthz("ok")
    third = sharing(plugin, make_plugin, socket=str(plugin.socket), lock_wait="1000s")
    third.socket = plugin.socket
    third.start(listening=False)
    wait_for(lambda: has_open(third.process.pid, lock_of(plugin.socket)))
    second.stop()
    third.wait_healthz("ok")
