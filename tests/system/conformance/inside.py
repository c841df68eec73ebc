"""What a server reports beside its answers: metrics and log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.harness.wait import until, wait_for
from tests.system.conformance.wrappings import apis

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin

# On a slow machine, too, no bound of the server's own ends a call: tests that block
# the token give their requests shorter deadlines.
PATIENT = {"call_timeout": "30s", "hang_timeout": "5m", "session_wait": "10s"}


def metrics(plugin: Plugin) -> dict[str, float]:
    """Our own samples, by name and labels as they stand there."""
    _, text = plugin.page("/metrics")
    found = re.findall(r"^(hsm_kms_\w+)(\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in found}


def token_calls(plugin: Plugin, operation: str) -> int:
    """Count the requests sent to the token for clients, and to create local KEKs."""
    name = f'hsm_kms_token_calls_total{{operation="{operation}"}}'
    return int(metrics(plugin).get(name, 0))


async def all_sessions_busy(plugin: Plugin) -> None:
    """Wait until a request is on every session of a server."""
    await until(lambda: metrics(plugin)["hsm_kms_sessions_idle"] == 0)


def health(plugin: Plugin) -> str:
    """The state of health."""
    (state,) = (
        name.split('"')[1]
        for name, value in metrics(plugin).items()
        if name.startswith("hsm_kms_health{") and value
    )
    return state


def start_well(plugin: Plugin, *, spawn: bool = False) -> Plugin:
    """Start a server, and wait until it is healthy and has its local KEK."""
    plugin.start(spawn=spawn).wait_healthz("ok")
    wait_local_kek(plugin)
    return plugin


def restart(plugin: Plugin, wrapping: str | None = None) -> None:
    """Restart the server, with another wrapping mode if one is given."""
    plugin.stop()
    if wrapping is not None:
        plugin.config["apis"] = apis(wrapping)
        plugin.write_config()
    start_well(plugin)


def wait_local_kek(plugin: Plugin) -> None:
    """Wait until the server has a local KEK, if its wrapping mode needs one.

    Until then the token wraps.
    """
    apis = plugin.config["apis"].values()
    if any(api.get("wrapping", "token") != "token" for api in apis):
        wait_for(lambda: _since_the_start(plugin).count('"event": "local KEK created"'))


def _since_the_start(plugin: Plugin) -> str:
    return plugin.log().rpartition('"event": "listening"')[2]
