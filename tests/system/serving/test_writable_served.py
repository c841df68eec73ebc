"""A server whose configuration other users can change."""

from __future__ import annotations


def test_warned_at_start(make_plugin, hsm):
    """`serve` starts all the same, and warns with the path and the cure."""
    plugin = make_plugin(hsm)
    plugin.config_file.chmod(0o666)
    plugin.start().wait_healthz("ok")
    (event,) = plugin.events("another user can change what the server relies on")

    assert "warning" == event["level"]
    assert "configuration" == event["setting"]
    assert f"every user can write to {plugin.config_file}" == event["error"]
    assert f"run chmod o-w {plugin.config_file}" == event["hint"]
