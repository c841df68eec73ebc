"""Test that manifests/ agree with each other, the image and the program."""

import re
from pathlib import Path

import pytest
import yaml

from hsm_kms import __version__
from hsm_kms.config.load import load

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "manifests"


@pytest.fixture
def pod():
    return yaml.safe_load((MANIFESTS / "static-pod.yaml").read_text())


@pytest.fixture
def container(pod):
    [container] = pod["spec"]["containers"]
    return container


@pytest.fixture
def config():
    return load(MANIFESTS / "config.example.yaml")


@pytest.fixture
def owned():
    """Return path → (kind, mode, user) of the tmpfiles.d example."""
    lines = (MANIFESTS / "tmpfiles.d" / "hsm-kms.conf").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {path: (kind, mode, user) for kind, path, mode, user, _, _ in rows}


def test_example_configuration_fits_the_pod(config, container):
    """Every path of the example is on a volume, a writable one if needed."""
    read_only = {
        mount["mountPath"]: mount.get("readOnly", False)
        for mount in container["volumeMounts"]
    }

    assert read_only[str(config.token.module.parent)]
    assert read_only[str(config.token.pin_file.parent)]
    assert not read_only[str(config.state_dir)]
    assert not read_only[str(config.listen.socket.parent)]
    assert "/etc/hsm-kms/config.yaml" == container["args"][-1]


def test_pod_has_no_privilege_it_does_not_need(pod, container):
    """The pod is not root, has no capability, and can write to volumes only."""
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    } == container["securityContext"]
    assert pod["spec"]["hostNetwork"]
    assert f"hsm-kms:{__version__}" == container["image"]


def test_pod_mounts_directories_that_exist_before(pod, owned):
    """The pod mounts directories that must exist, and no single files."""
    volumes = [volume["hostPath"] for volume in pod["spec"]["volumes"]]

    assert {"Directory"} == {volume["type"] for volume in volumes}
    assert set() == {
        volume["path"] for volume in volumes if not volume["path"].startswith("/usr")
    } - set(owned)


def test_one_user_everywhere(pod, owned):
    """The image, the pod and the directories name the same user."""
    [user] = re.findall(
        r"^USER (\d+):\1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )

    assert int(user) == pod["spec"]["securityContext"]["runAsUser"]
    assert ("d", "0700", user) == owned["/run/hsm-kms"]
    assert ("d", "0700", user) == owned["/var/lib/hsm-kms"]
    assert ("z", "0400", user) == owned["/etc/hsm-kms/pin"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_api_server_is_pointed_at_the_socket(version, config):
    """The EncryptionConfiguration names the socket of the server."""
    text = (MANIFESTS / f"encryption-config-{version}.yaml").read_text()
    [resources] = yaml.safe_load(text)["resources"]
    kms = resources["providers"][0]["kms"]

    assert version == kms["apiVersion"]
    assert f"unix://{config.listen.socket}" == kms["endpoint"]
