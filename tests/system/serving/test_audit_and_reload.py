"""A configuration is tried by what the token does, also while nothing is recorded."""

from __future__ import annotations

import pytest

from tests.harness.wait import wait_for
from tests.unit.audit.audit_rig import audit_path


@pytest.mark.parametrize("wrapping", ["token", "software"])
def test_reload_while_records_are_lost(make_plugin, hsm, directory, wrapping):
    """A file is not applied, nor rejected, because requests cannot be recorded."""
    path = audit_path(directory)
    path.mkdir()
    plugin = make_plugin(
        hsm,
        audit={"file": str(path), "on_error": "refuse"},
        apis={"v2": {"wrapping": wrapping}},
    ).start()
    plugin.wait_healthz("audit records cannot be written")
    label = plugin.config["token"]["token_label"]
    plugin.merge("token", {"token_label": "another", "start_timeout": "5s"})
    plugin.write_config()
    rejected = "configuration rejected: the token would become unavailable"
    wait_for(lambda: plugin.events(rejected))
    assert not plugin.events("configuration applied")

    plugin.merge("token", {"token_label": label, "call_timeout": "3s"})
    plugin.config["audit"] = {}
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration applied"))
    assert 1 == len(plugin.events(rejected))
    plugin.wait_healthz("ok")
