"""Run the commands of pages that need no cluster."""

from __future__ import annotations

import os

from tests.harness.pages import walk
from tests.harness.terminals import InProcess


def test_service_of_another_user(of_another_user):
    """`keys list` and `check` name the user, and the line to run."""
    plugin = of_another_user
    names = {"/var/lib/hsm-kms": str(plugin.state_dir)}
    names["clear-groups hsm-kms keys list"] = (
        f"clear-groups hsm-kms keys list --config {plugin.config_file}"
    )
    with walk(
        InProcess(plugin.config_file),
        "docs/commands.md",
        "As which user, and from where",
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
        "As which user, and from where (2)",
        names=names,
    ) as page:
        page.run("hsm-kms check", code=1)


SOCKET = "/run/hsm-kms/kms.sock"  # on the pages


def test_probe(shared_server):
    """`probe` prints what the page shows."""
    with walk(
        InProcess(None),
        "docs/commands.md",
        "What `probe` does",
        names={SOCKET: str(shared_server.socket)},
    ) as page:
        page.run("hsm-kms probe")


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


def test_troubleshooting_as_api_server(shared_server):
    """`probe --as-apiserver` succeeds for an API server of the same user."""
    with walk(
        InProcess(None),
        "docs/troubleshooting.md",
        "Troubleshooting (2)",
        names={SOCKET: str(shared_server.socket)},
    ) as page:
        page.run("hsm-kms probe", str(os.getpid()))
