"""`health.stop_writes_after` on a running server."""

from __future__ import annotations

import http.client

from tests.harness.plugin import get
from tests.harness.wait import patient, wait_for


def test_served_without_answers(make_plugin, hsm):
    """Status is UNAVAILABLE, /readyz 503, `status` gives the cause; a key ends it.

    The server remembers its key and does not reach the token that has it.
    """
    plugin = make_plugin(hsm, health={"stop_writes_after": "2s"}).start()
    plugin.wait_healthz("ok")
    plugin.stop()
    plugin.config["token"] |= {"token_label": "another"}
    plugin.write_config()
    plugin.start()
    plugin.wait_healthz("UNAVAILABLE")
    wait_for(lambda: "no token" in plugin.events("health")[-1]["detail"])
    shown = plugin.cli("status")

    assert (1, "") == (shown.returncode, shown.stdout)
    assert "\nhint: health.stop_writes_after has passed: " in shown.stderr
    assert "no token" in shown.stderr
    assert 503 == readyz(plugin)

    plugin.config["token"] |= {"token_label": "test"}
    plugin.write_config()
    plugin.wait_healthz("ok")
    assert 200 == readyz(plugin)


def readyz(plugin):
    """HTTP status code."""
    port = plugin.http_port()
    return get(http.client.HTTPConnection("127.0.0.1", port, patient()), "/readyz")[0]
