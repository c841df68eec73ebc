"""Walk manifests/, so that a file that is added there is checked by the tests.

Each file is of one of `KINDS`, by the kind that it names or by its path. Kubernetes'
own programs check the kinds that they know, in tests/system.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

MANIFESTS: Final = Path(__file__).parents[2] / "manifests"

CONFIG: Final = "hsm-kms"  # the kind of a configuration of hsm-kms
ALERTS: Final = "alerts"  # rules of Prometheus
DISTRIBUTION: Final = "distribution"  # of a file that only a distribution reads
KINDS: Final = {
    "Pod",
    "DaemonSet",
    "EncryptionConfiguration",
    "Kustomization",
    "Component",
    "ClusterConfiguration",
    "PrometheusRule",
    ALERTS,
    CONFIG,
    DISTRIBUTION,
}
# What no program of Kubernetes reads, and nobody here can check but by its paths.
DISTRIBUTIONS: Final = {
    "k3s/config.yaml",
    "kind/cluster.yaml",
    "rancher/rke1-cluster.yml",
    "rancher/rke2-cluster.yaml",
    "rke2/config.yaml",
    "sidecar/kamaji.yaml",
}
_YAML: Final = re.compile(r"\.ya?ml")


def names(*kinds: str) -> list[str]:
    """Return the paths, below manifests/, of all YAML files of these kinds."""
    found = (path for path in MANIFESTS.rglob("*") if _YAML.fullmatch(path.suffix))
    every = sorted(str(path.relative_to(MANIFESTS)) for path in found)
    return [name for name in every if not kinds or kind_of(name) in kinds]


def kind_of(name: str) -> str:
    """Return the kind of a file; what it calls itself if that is none of `KINDS`."""
    if name in DISTRIBUTIONS:
        return DISTRIBUTION
    content = read(name)
    if content.get("version") == 1:
        return CONFIG
    if "groups" in content:
        return ALERTS
    return str(content.get("kind"))


def read(name: str) -> Any:
    """Return the content of a file."""
    return yaml.safe_load((MANIFESTS / name).read_text())


def uncommented(text: str, pattern: str) -> str:
    """Return a text with "# " removed from the commented lines that match.

    Args:
        text: The content of a file.
        pattern: A regular expression for what follows "# ", of which one line or more
            must be there.
    """
    changed, count = re.subn(rf"^( *)# ({pattern})", r"\1\2", text, flags=re.MULTILINE)
    assert count, pattern
    return changed


def for_a_group(tmpfiles: str) -> str:
    """Return tmpfiles.d/hsm-kms.conf with the line for an API server that is not root.

    Args:
        tmpfiles: The content of the file.
    """
    line = re.compile(r"^d /run/hsm-kms .*\n", re.MULTILINE)
    assert line.search(tmpfiles)
    return uncommented(line.sub("", tmpfiles), "d /run/hsm-kms .*")


def components() -> list[str]:
    """Return the names of the components that kustomization.yaml offers."""
    text = (MANIFESTS / "kustomization.yaml").read_text()
    return re.findall(r"^  # - components/(\S+)$", text, re.MULTILINE)


def with_components(text: str, *chosen: str) -> str:
    """Return kustomization.yaml with some components."""
    for name in chosen:
        text = uncommented(text, rf"- components/{name}$")
    return text if chosen else text.replace("components:\n", "", 1)
