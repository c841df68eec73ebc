"""The programs the end-to-end tests start: found, or built once and kept.

`python -m tests.system.e2e.binaries` builds what is missing and says where it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.kept import kept, locked

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULE = Path(__file__).parent / "tools"
KUBERNETES = "v1.36.3"
KINE_PACKAGE, KINE = "github.com/k3s-io/kine", "v0.17.5"
CRICTL_PACKAGE, CRICTL = "sigs.k8s.io/cri-tools/cmd/crictl", "v1.34.0"
LDFLAGS = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"
PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "etcdctl": "go.etcd.io/etcd/etcdctl/v3",
    "etcdutl": "go.etcd.io/etcd/etcdutl/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
NODE_PACKAGES = {
    "kubeadm": "k8s.io/kubernetes/cmd/kubeadm",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
}
ASSETS = ("etcd", "kube-apiserver", "kubectl")  # what KUBEBUILDER_ASSETS promises
BUILD_TIMEOUT = 45 * 60.0  # seconds; a cold build on two cores takes about five minutes


class MissingToolError(Exception):
    """Something is needed that is neither here nor can be built here."""


@dataclass(frozen=True)
class Binaries:
    """Paths of the programs of a cluster."""

    etcd: Path
    etcdctl: Path
    etcdutl: Path
    kube_apiserver: Path
    kubectl: Path


@dataclass(frozen=True)
class NodeBinaries:
    """Paths of the programs of a node."""

    crictl: Path
    kubeadm: Path
    kubelet: Path


def missing() -> str | None:
    """Say what keeps a cluster from being started here, None if nothing does."""
    assets = _assets()
    if not shutil.which("go") and "kube-apiserver" not in assets:
        return "neither Go nor a folder of binaries in KUBEBUILDER_ASSETS is here"
    return None


def cluster() -> Binaries:
    """Find the programs of a cluster, building those that KUBEBUILDER_ASSETS lacks.

    Raises:
        MissingToolError: One is missing and there is no Go to build it.
    """
    found = _assets()
    found |= _built({n: p for n, p in PACKAGES.items() if n not in found})
    return Binaries(
        etcd=found["etcd"],
        etcdctl=found["etcdctl"],
        etcdutl=found["etcdutl"],
        kube_apiserver=found["kube-apiserver"],
        kubectl=found["kubectl"],
    )


def node() -> NodeBinaries:
    """Build the programs of a node.

    Raises:
        MissingToolError: There is no Go.
    """
    crictl = _installed(CRICTL_PACKAGE, CRICTL, needs=("go",))
    return NodeBinaries(crictl=crictl, **_built(NODE_PACKAGES))


def controller_manager() -> Path:
    """Build kube-controller-manager.

    Raises:
        MissingToolError: There is no Go.
    """
    name = "kube-controller-manager"
    return _built({name: f"k8s.io/kubernetes/cmd/{name}"})[name]


def loader() -> Path:
    """Build `tools/loader`, the API server's own encryption code.

    Raises:
        MissingToolError: There is no Go.
    """
    name = f"loader-{_digest(sorted((MODULE / 'loader').glob('*.go')))}"
    return _built({name: "./loader"})[name]


def kine() -> Path:
    """Build kine, which stores the objects of k3s in SQLite and speaks etcd's protocol.

    Raises:
        MissingToolError: There is no Go, or no C compiler.
    """
    return _installed(KINE_PACKAGE, KINE, needs=("go", "gcc"))


def _installed(package: str, version: str, *, needs: tuple[str, ...]) -> Path:
    """Build a program that has a Go module of its own."""
    name = package.rpartition("/")[2]
    path = _cache() / f"{name}-{version}"
    if path.is_file():
        return path
    if lacking := [tool for tool in needs if not shutil.which(tool)]:
        msg = f"no {lacking[0]} here to build {name}"
        raise MissingToolError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        locked(path.parent / f"{name}.lock"),
        tempfile.TemporaryDirectory(dir=path.parent) as scratch,
    ):
        if not path.is_file():  # nobody built it while this waited
            cgo = {"GOBIN": scratch, "CGO_ENABLED": str(int("gcc" in needs))}
            subprocess.run(
                ["nice", "-n", "10", "go", "install", f"{package}@{version}"],
                env=os.environ | cgo,
                check=True,
                timeout=BUILD_TIMEOUT,
            )
            (Path(scratch) / name).replace(path)
    return path


def _assets() -> dict[str, Path]:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        return {}
    paths = {name: Path(folder) / name for name in PACKAGES}
    if not all(paths[name].is_file() for name in ASSETS):
        return {}
    return {name: path for name, path in paths.items() if path.is_file()}


def _cache() -> Path:
    if own := os.environ.get("HSM_KMS_E2E_CACHE"):
        return Path(own)
    return kept("e2e")


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _built(packages: Mapping[str, str]) -> dict[str, Path]:
    folder = _cache() / _digest([MODULE / "go.mod"])
    paths = {name: folder / name for name in packages}
    if all(path.is_file() for path in paths.values()):
        return paths
    if not shutil.which("go"):
        msg = f"no Go here to build {', '.join(packages)}"
        raise MissingToolError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        for name, path in paths.items():
            if not path.is_file():
                _build(packages[name], path)
    return paths


def _build(package: str, target: Path) -> None:
    sys.stderr.write(f"building {package}\n")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        out = Path(scratch) / "out"
        subprocess.run(
            [
                "nice",
                "-n",
                "10",
                "go",
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags",
                LDFLAGS,
                "-o",
                str(out),
                package,
            ],
            cwd=MODULE,
            check=True,
            timeout=BUILD_TIMEOUT,
        )
        out.replace(target)


def main() -> None:
    """Build everything and print where it is."""
    more = (loader(), kine(), controller_manager())
    for path in (*vars(cluster()).values(), *more, *vars(node()).values()):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
