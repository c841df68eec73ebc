"""The API server, kustomize and kubeadm take the files of manifests/."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.harness.manifests import MANIFESTS, components, names, with_components
from tests.harness.wait import patient
from tests.system.e2e import binaries as programs
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

# Components that one node may need together.
CHOICES = [
    (),
    *((name,) for name in components()),
    ("non-root-apiserver", "nshield"),
    ("openshift", "luna"),
]
# What kubeadm would otherwise find out about the machine.
INIT = """\
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 192.0.2.11}
nodeRegistration: {name: node, criSocket: "unix:///run/none.sock"}
"""


@pytest.fixture(scope="module")
def api(
    binaries: programs.Binaries, new_folder: Callable[[], Path]
) -> Iterator[ApiServer]:
    """An API server."""
    folder = new_folder()
    etcd = Etcd(binaries, folder)
    server = ApiServer(binaries, etcd, folder)
    try:
        server.start(None)
        yield server
    finally:
        server.stop()
        etcd.stop()


@pytest.fixture(scope="module")
def node_binaries(included: None) -> programs.NodeBinaries:
    """The programs of a node."""
    return programs.node()


def create(api: ApiServer, text: str) -> list[dict]:
    """Return what the API server would store; it refuses unknown fields."""
    flags = ("--dry-run=server", "--validate=strict", "-o", "yaml", "-f", "-")
    made = api.kubectl("create", *flags, stdin=text.encode())
    return list(yaml.safe_load_all(made))


@pytest.mark.parametrize("name", names("Pod", "DaemonSet"))
def test_the_api_server_takes_it(name, api):
    """The API server would create each object, and knows every field of it."""
    [made] = create(api, (MANIFESTS / name).read_text())

    assert made["metadata"]["uid"]


@pytest.mark.parametrize("chosen", CHOICES, ids="+".join)
def test_kustomize(chosen, api, new_folder):
    """A pod with each component is built, and the API server would create it."""
    folder = new_folder() / "manifests"
    shutil.copytree(MANIFESTS, folder)
    file = folder / "kustomization.yaml"
    file.write_text(with_components(file.read_text(), *chosen))

    built = api.kubectl("kustomize", str(folder)).decode()
    [pod] = create(api, built)

    assert 2_000_001_000 == pod["spec"]["priority"]  # system-node-critical
    assert (yaml.safe_load(built) == static_pod()) == (chosen == ())
    mounted = {each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
    assert {each["name"] for each in pod["spec"]["volumes"]} == mounted


def test_kustomize_monitoring(api):
    """Kustomize makes a ConfigMap of the dashboard; the API server would create it."""
    built = api.kubectl("kustomize", str(MANIFESTS / "monitoring")).decode()
    [config_map] = (
        text for text in built.split("\n---\n") if "kind: ConfigMap" in text
    )
    [made] = create(api, config_map)

    dashboard = (MANIFESTS / "monitoring" / "dashboard.json").read_text()
    assert {"dashboard.json": dashboard} == made["data"]
    assert "1" == made["metadata"]["labels"]["grafana_dashboard"]


def static_pod() -> dict:
    return yaml.safe_load((MANIFESTS / "static-pod.yaml").read_text())


@pytest.mark.parametrize("name", names("ClusterConfiguration"))
def test_kubeadm(name, api, node_binaries, new_folder):
    """A ClusterConfiguration gives the kube-apiserver that the edited pod shows."""
    folder = new_folder()
    config = folder / "kubeadm.yaml"
    config.write_text((MANIFESTS / name).read_text() + INIT)

    kubeadm(node_binaries, folder, "config", "validate", "--config", config)
    phase = ("init", "phase", "control-plane", "apiserver", "--dry-run")
    kubeadm(node_binaries, folder, *phase, "--config", config)
    [pod] = create(api, (folder / "kube-apiserver.yaml").read_text())

    edited = yaml.safe_load((MANIFESTS / "kubeadm" / "kube-apiserver.yaml").read_text())
    assert ours(edited)
    assert ours(edited) == ours(pod)


def kubeadm(node_binaries: programs.NodeBinaries, folder: Path, *args: object) -> None:
    """Run kubeadm, which must succeed; what it would write goes into a folder."""
    done = subprocess.run(
        [node_binaries.kubeadm, *map(str, args)],
        capture_output=True,
        check=False,
        env={**os.environ, "KUBEADM_INIT_DRYRUN_DIR": str(folder)},
        timeout=patient(100),
    )
    assert 0 == done.returncode, (done.stdout + done.stderr).decode()


def ours(pod: dict) -> set[tuple[str, ...]]:
    """Return the flags, mounts and volumes of kube-apiserver that concern hsm-kms."""
    spec = pod["spec"]
    [server] = spec["containers"]
    flags = {(each,) for each in server["command"] if "encryption" in each}
    mounts = {
        (each["name"], each["mountPath"], str(each["readOnly"]))
        for each in server["volumeMounts"]
    }
    volumes = {
        (each["name"], each["hostPath"]["path"], each["hostPath"]["type"])
        for each in spec["volumes"]
    }
    wanted = {"hsm-kms", "encryption-config"}
    return flags | {each for each in mounts | volumes if each[0] in wanted}
