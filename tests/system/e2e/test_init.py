"""What `hsm-kms init` writes, loaded by the API server's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hsm_kms.cli.init.choices import FORMS
from tests.harness import command_line
from tests.system.e2e.plugin import Plugin, running_plugin
from tests.system.e2e.test_loader import HEALTHY, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]


@pytest.fixture(scope="module")
def plugin(included: None, new_folder: Callable[[], Path]) -> Iterator[Plugin]:
    """A plugin with a key of its own."""
    with running_plugin(new_folder() / "plugin") as running:
        yield running


@pytest.mark.parametrize("cluster", FORMS)
def test_the_api_server_takes_each_step(cluster, loader, plugin, new_folder):
    """The API server loads all three EncryptionConfigurations, and finds the plugin."""
    out = new_folder() / "out"
    choices = ("--cluster", cluster, "--run-as", "static-pod", "--module", "/m.so")
    ended = command_line.run("init", out, *choices, "--socket", plugin.socket, "--yes")
    assert 0 == ended.returncode, ended.stderr

    steps = sorted(out.glob("encryption-config-*.yaml"))
    assert 3 == len(steps)
    for step in steps:
        loaded = run(loader, "load", step)[str(step)]
        assert ["secrets"] == loaded["resources"]
        assert HEALTHY == loaded["health"]
