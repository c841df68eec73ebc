"""The walk-through of docs/install/README.md, command after command, on a node."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.etcd_server import make_certificates
from tests.harness.manifests import MANIFESTS
from tests.harness.pages import Walk, walk
from tests.harness.terminals import Shell
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.processes import wait_for
from tests.system.node.kubelet.operator import create, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries, NodeBinaries
    from tests.system.node.images import Image
    from tests.system.node.kubelet.node import Node
    from tests.system.node.kubelet.pod_view import PodView

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900, func_only=True)]

PIN = "1234"
PINS = f"--so-pin 5678 --pin {PIN}"  # where a person is asked for them
CRICTL = "runtime-endpoint: unix:///run/containerd/containerd.sock\n"
CTRL_D = "\x04"
RELOAD = "--encryption-provider-config-automatic-reload=true"
PREFIX = b"k8s:enc:kms:v2:hsm-kms:"
SECONDS = 180.0  # an API server reads its file once a minute


class Guided(NamedTuple):
    """A node with nothing on it, an API server of it, and a shell.

    Args:
        node: The node.
        pod: Its static pod, once there is one.
        etcd: What the API server stores in.
        api: The API server, not started.
        shell: A shell of root on the node, in a checkout.
        names: What this machine has in place of the guide's names.
    """

    node: Node
    pod: PodView
    etcd: Etcd
    api: ApiServer
    shell: Shell
    names: dict[str, str]


@pytest.fixture
def guided(
    bare_node: Callable[[], Node],
    view: Callable[[Node], PodView],
    image: Image,
    binaries: Binaries,
    node_binaries: NodeBinaries,
    new_folder: Callable[[], Path],
) -> Iterator[Guided]:
    """What the guide begins with."""
    node, folder = bare_node(), new_folder()
    etcd = Etcd(binaries, folder)
    api = ApiServer(binaries, etcd, folder, node.command_in_mounts())
    (folder / "manifests").symlink_to(MANIFESTS)
    shutil.copy(image.archive, folder / "hsm-kms-0.1.0.tar")
    (folder / "bin").mkdir()
    (folder / "bin" / "crictl").symlink_to(node_binaries.crictl)
    paths = [folder / "bin", binaries.etcdctl.parent, binaries.kubectl.parent]
    (folder / "crictl.yaml").write_text(CRICTL)
    env = {
        "KUBECONFIG": str(api.kubeconfig),
        "CRI_CONFIG_FILE": str(folder / "crictl.yaml"),
    }
    shell = Shell(folder, folder / "none", paths, env, node.command())
    pki = make_certificates(folder / "pki")
    names = {
        "etcdctl ...": f"etcdctl --endpoints {etcd.url}",
        "https://127.0.0.1:2379": etcd.url,
        "/etc/kubernetes/pki/etcd/ca.crt": str(pki.ca),
        "/etc/kubernetes/pki/etcd/server.crt": str(pki.client),
        "/etc/kubernetes/pki/etcd/server.key": str(pki.client_key),
    }
    try:
        yield Guided(node, view(node), etcd, api, shell, names)
    finally:
        api.stop()
        etcd.stop()


def test_the_guide(guided: Guided) -> None:
    """Each command of the walk-through does what the guide says."""
    with walk(
        guided.shell,
        "docs/install/README.md",
        "1. The image",
        "2. The directories",
        "3. The configuration and the PIN",
        "4. The token",
        "5. The static pod",
        "5. The static pod (2)",
        "6. The key",
        "6. The key (2)",
        "7. Every API server can read",
        "7. Every API server can read (2)",
        "8. Encrypt",
        "8. Encrypt (2)",
        "9. Encrypt what was stored before",
        "9. Encrypt what was stored before (2)",
        "Restart a static pod",
        names=guided.names,
    ) as page:
        prepare(page)
        start(page, guided)
        begin_to_read(page, guided)
        encrypt(page, guided)
        restart(page, guided)


def prepare(page: Walk) -> None:
    """Steps 1 to 4."""
    page.run("ctr -n k8s.io images import")
    page.run("crictl images")
    page.run("install -m 0644 manifests/tmpfiles.d")
    page.run("systemd-tmpfiles")
    page.run("install -m 0640")
    page.run("install -m 0640")
    page.run("install -m 0400", typed=f"{PIN}\n{CTRL_D}")
    page.run("setpriv", PINS)


def start(page: Walk, guided: Guided) -> None:
    """Steps 5 and 6."""
    page.run("cp manifests/static-pod.yaml")
    guided.pod.wait_ready(False)
    page.run("crictl ps")
    page.run("crictl exec")
    guided.pod.wait_ready()
    page.run("crictl exec")


def begin_to_read(page: Walk, guided: Guided) -> None:
    """Step 7, with an API server that has stored a Secret before."""
    guided.api.start(None)
    create(guided.api, "early")
    guided.api.stop()
    page.run("install -d -m 0700 /etc/kubernetes/encryption")
    page.run("install -m 0600")
    guided.api.start(guided.node.encryption_config, RELOAD)
    page.run("kubectl get --raw")
    create(guided.api, "between")
    assert not stored(guided.etcd)["between"].startswith(PREFIX)


def encrypt(page: Walk, guided: Guided) -> None:
    """Steps 8 and 9."""
    page.run("install -m 0600")
    wait_for("reload", lambda: encrypts(guided), timeout=SECONDS, every=1.0)
    page.run("kubectl create")
    page.run("etcdctl")
    page.run("kubectl get secret")
    page.run("kubectl get secrets")
    page.run("etcdctl")

    values = stored(guided.etcd)
    assert {"early", "between", "db"} <= set(values)
    assert all(value.startswith(PREFIX) for value in values.values())


def encrypts(guided: Guided) -> bool:
    """Return True if a new Secret is stored encrypted."""
    name = f"trial-{len(stored(guided.etcd))}"
    create(guided.api, name)
    return stored(guided.etcd)[name].startswith(PREFIX)


def restart(page: Walk, guided: Guided) -> None:
    """Restart the container of the static pod."""
    before = guided.pod.container()
    page.run("crictl stop")
    wait_for("restart", lambda: guided.pod.container() != before, timeout=SECONDS)
    guided.pod.wait_ready()
