"""Shells of an operator: of root on a node, and where their kubectl is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.harness.etcd_server import make_certificates
from tests.harness.pages import walk
from tests.harness.terminals import Shell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.system.e2e.world import World

# There is no kubelet: what `crictl exec` runs in the container of the plugin runs here,
# with its configuration.
_CRICTL = """#!/bin/sh
case "$*" in
"ps --quiet --name ^hsm-kms$") echo 1f73f2d9e ;;
"exec --interactive 1f73f2d9e "*) shift 3; exec "$@" ;;
"exec --interactive --tty 1f73f2d9e "*) shift 4; exec "$@" ;;
*) echo "crictl: $*" >&2; exit 1 ;;
esac
"""


def node_shell(world: World, env: Mapping[str, str] | None = None) -> Shell:
    """Return a shell on the node, with the functions of docs/commands.md.

    Args:
        world: The node.
        env: More of the environment of what runs in the container.
    """
    crictl = world.folder / "bin" / "crictl"
    shell = _shell(world, env or {})
    crictl.write_text(_CRICTL)
    crictl.chmod(0o755)
    with walk(
        shell, "docs/commands.md", "On a control-plane node", names=names_on(world)
    ) as page:
        page.run("hsm-kms()")
        page.run("with_etcd()")
    return shell


def operator_shell(world: World) -> Shell:
    """Return a shell where kubectl is set up, and hsm-kms and etcd are installed."""
    kubeconfig = {"KUBECONFIG": str(world.api.kubeconfig)}
    return _shell(world, kubeconfig)


def names_on(world: World) -> dict[str, str]:
    """Return what a node has in place of the texts of the pages."""
    folder = world.folder / "pki"
    if not folder.exists():  # etcd itself is without TLS here
        make_certificates(folder)
    return {
        "https://127.0.0.1:2379": world.etcd.urls[0],
        "/etc/kubernetes/pki/etcd/ca.crt": str(folder / "ca.pem"),
        "/etc/kubernetes/pki/apiserver-etcd-client.crt": str(folder / "client.pem"),
        "/etc/kubernetes/pki/apiserver-etcd-client.key": str(folder / "client_key.pem"),
        "-o 10001 -g 10001": f"-o {os.geteuid()} -g {os.getegid()}",
    }


def _shell(world: World, env: Mapping[str, str]) -> Shell:
    binaries = world.binaries
    programs = (binaries.kubectl, binaries.etcd, binaries.etcdctl)
    return Shell(
        world.folder,
        world.plugin.config_file,
        [each.parent for each in programs],
        {"SOFTHSM2_CONF": str(world.plugin.token.conf), **env},
    )
