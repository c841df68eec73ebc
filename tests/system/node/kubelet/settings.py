"""The configuration of containerd and of the kubelet, and the node's directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.system.node.kubelet import pause

if TYPE_CHECKING:
    from pathlib import Path

# Folder of the test → where the node has it.
DIRECTORIES: Final = {
    "etc": "/etc/hsm-kms",
    "state": "/var/lib/hsm-kms",
    "token": "/var/lib/hsm-kms-token",
    "run": "/run/hsm-kms",
    "tmpfiles": "/etc/tmpfiles.d",
    "manifests": "/etc/kubernetes/manifests",
    "encryption": "/etc/kubernetes/encryption",
    "containerd-run": "/run/containerd",
    "kubelet-lib": "/var/lib/kubelet",
}
CONTAINERD: Final = "/run/containerd/containerd.sock"


def containerd_config(folder: Path) -> str:
    """Return containerd's configuration, with all its files below a folder."""
    cni = folder / "cni"
    return f"""\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  # A machine without CAP_SYS_RESOURCE cannot lower oom_score_adj.
  restrict_oom_score_adj = true
  sandbox_image = "{pause.NAME}"
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}/bin"
    conf_dir = "{cni}/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def kubelet_config(port: int) -> dict[str, Any]:
    """Return the configuration of a kubelet without an API server."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": DIRECTORIES["manifests"],
        "podLogsDir": f"{DIRECTORIES['kubelet-lib']}/logs",
        "volumePluginDir": f"{DIRECTORIES['kubelet-lib']}/plugins-exec",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": True},
            "webhook": {"enabled": False},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "fileCheckFrequency": "1s",
        "makeIPTablesUtilChains": False,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    }
