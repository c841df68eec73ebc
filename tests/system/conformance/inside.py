"""What a server tells of itself beside its answers: metrics and log."""

from __future__ import annotations

import base64
import re
import urllib.request
from typing import TYPE_CHECKING

from tests.harness.wait import wait_for
from tests.system.conformance.wrappings import apis

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin


def metrics(plugin: Plugin) -> dict[str, float]:
    """Our own samples, by name and labels as they stand there."""
    port = plugin.events("probes and metrics")[-1]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r"^(hsm_kms_\w+)(\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in found}


def token_calls(plugin: Plugin, operation: str) -> int:
    """Count the requests sent to the token for clients, and to create local KEKs."""
    name = f'hsm_kms_token_calls_total{{operation="{operation}"}}'
    return int(metrics(plugin).get(name, 0))


def health(plugin: Plugin) -> str:
    """The state of health."""
    (state,) = (
        name.split('"')[1]
        for name, value in metrics(plugin).items()
        if name.startswith("hsm_kms_health{") and value
    )
    return state


def start_well(plugin: Plugin) -> Plugin:
    """Start a server, and wait until it is as it stays."""
    plugin.start().wait_healthz("ok")
    wait_local_kek(plugin)
    return plugin


def restart(plugin: Plugin, wrapping: str | None = None) -> None:
    """Give the server another life, with another wrapping perhaps."""
    plugin.stop()
    if wrapping is not None:
        plugin.config["apis"] = apis(wrapping)
        plugin.write_config()
    start_well(plugin)


def spellings(secret: bytes) -> dict[str, str]:
    """A secret as it might stand in a text."""
    return {
        "raw": secret.decode("latin-1"),
        "hex": secret.hex(),
        "base64": base64.b64encode(secret).decode().rstrip("="),
        "url": base64.urlsafe_b64encode(secret).decode().rstrip("="),
        "repr": repr(secret)[2:-1],
    }


def wait_local_kek(plugin: Plugin) -> None:
    """Wait until the server has a local KEK, where its wrapping wants one.

    Right after the start the token wraps in its place.
    """
    apis = plugin.config["apis"].values()
    if any(api.get("wrapping", "token") != "token" for api in apis):
        wait_for(lambda: _since_the_start(plugin).count('"event": "local KEK"'))


def _since_the_start(plugin: Plugin) -> str:
    return plugin.log().rpartition('"event": "listening"')[2]
