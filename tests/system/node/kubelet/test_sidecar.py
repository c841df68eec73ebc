"""The sidecar of manifests/ runs under a kubelet, with volumes of a static pod.

What differs from the manifest: the configuration is a directory of the node instead of
a Secret, the token is SoftHSM's, and kube-apiserver, which is the other container, is
left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.harness.manifests import read
from tests.system.node.kubelet.operator import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.node.kubelet.node import Node
    from tests.system.node.kubelet.pod_view import PodView

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

SOCKETS = "/var/run/kmsplugin"
GROUP = 10001  # the fsGroup


def test_the_sidecar(
    make_node: Callable[..., Node], view: Callable[[Node], PodView]
) -> None:
    """The socket has the pod's group in a directory that nobody else can write to."""
    config = read("sidecar/config.yaml") | {"token": yaml.safe_load(CONFIG)["token"]}
    node = make_node(yaml.safe_dump(config))
    pod = view(node)
    node.place(yaml.safe_dump(static(read("sidecar/pod.yaml"))))
    pod.wait_ready(False)
    pod.exec("hsm-kms", "keys", "generate")
    pod.wait_ready()

    shown = pod.exec("stat", "-c", "%a %u %g", SOCKETS, f"{SOCKETS}/kms.sock").stdout
    assert [f"2750 {GROUP} {GROUP}", f"660 {GROUP} {GROUP}"] == shown.splitlines()
    assert 0 == pod.exec("hsm-kms", "check").returncode


def static(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the pod without what only an API server could give it."""
    spec = pod["spec"]
    [ours] = [each for each in spec["containers"] if each["name"] == "hsm-kms"]
    [shared] = [each for each in spec["volumes"] if "emptyDir" in each]
    paths = {
        "hsm-kms-config": "/etc/hsm-kms",
        "module": "/usr/lib/x86_64-linux-gnu/softhsm",
        "token": "/var/lib/hsm-kms-token",
    }
    volumes = [{"name": n, "hostPath": {"path": p}} for n, p in paths.items()]
    ours["volumeMounts"] += [
        {"name": "module", "mountPath": "/opt/hsm-kms-module"},
        {"name": "token", "mountPath": "/var/lib/hsm-kms-token"},
    ]
    changed = {"hostNetwork": True, "containers": [ours], "volumes": [shared, *volumes]}
    return pod | {"spec": spec | changed}
