"""Run the commands of pages that need no cluster."""

from __future__ import annotations

import os

import pytest

from tests.harness.pages import walk
from tests.harness.softhsm import PIN
from tests.harness.terminals import InProcess

SERVICE = 10001  # on the pages

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may chown")


@needs_root
def test_service_of_another_user(make_plugin, hsm, directory):
    """`keys list` and `check` name the user, and the line to run."""
    own = directory / "pin"
    own.touch(mode=0o400)
    own.write_text(PIN)
    plugin = make_plugin(hsm, token={"pin_file": str(own)})
    for path in (own, plugin.state_dir, plugin.directory):
        os.chown(path, SERVICE, SERVICE)
    names = {"/var/lib/hsm-kms": str(plugin.state_dir)}
    names["clear-groups hsm-kms keys list"] = (
        f"clear-groups hsm-kms keys list --config {plugin.config_file}"
    )
    with walk(
        InProcess(plugin.config_file),
        "docs/commands.md",
        "As which user, and from where, each command runs",
        names=names,
    ) as page:
        page.run("hsm-kms keys list", code=1)


def test_no_state_directory(make_plugin, hsm):
    """`check` prints the line that makes the state directory."""
    plugin = make_plugin(hsm)
    plugin.state_dir.rmdir()
    names = {
        "/var/lib/hsm-kms": str(plugin.state_dir),
        "-o 10001 -g 10001": f"-o {os.geteuid()} -g {os.getegid()}",
    }
    with walk(
        InProcess(plugin.config_file),
        "docs/commands.md",
        "As which user, and from where, each command runs (2)",
        names=names,
    ) as page:
        page.run("hsm-kms check", code=1)


def test_troubleshooting(shared_server):
    """`status` and `check` succeed while all is well."""
    with walk(
        InProcess(shared_server.config_file),
        "docs/troubleshooting.md",
        "Troubleshooting",
        names={},
    ) as page:
        page.run("hsm-kms status")
        page.run("hsm-kms check")
