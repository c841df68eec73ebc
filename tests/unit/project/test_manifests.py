"""Test that manifests/ agree with each other, the image and the program."""

import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from hsm_kms import __version__, healthcheck
from hsm_kms.config.load import load
from tests.harness.manifests import (
    CONFIG,
    DISTRIBUTIONS,
    KINDS,
    MANIFESTS,
    components,
    for_a_group,
    kind_of,
    names,
    read,
    uncommented,
)

ROOT = Path(__file__).parents[3]
TWO_PLUGINS = {"/run/kmsplugin/socket.sock", "/run/kmsplugin/socket2.sock"}


@pytest.fixture
def pod():
    return read("static-pod.yaml")


@pytest.fixture
def container(pod):
    [container] = pod["spec"]["containers"]
    return container


@pytest.fixture
def config():
    return load(MANIFESTS / "config.example.yaml")


def tmpfiles(text):
    """Return path → (kind, mode, user, group) of tmpfiles.d."""
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {
        path: (kind, mode, user, group) for kind, path, mode, user, group, _ in lines
    }


@pytest.fixture
def owned():
    return tmpfiles((MANIFESTS / "tmpfiles.d" / "hsm-kms.conf").read_text())


def everywhere(content, key):
    """Yield each value of a key, at any depth."""
    inner = content.values() if isinstance(content, dict) else content
    if isinstance(content, dict) and key in content:
        yield content[key]
    if isinstance(content, dict | list):
        for each in inner:
            yield from everywhere(each, key)


# The whole folder


@pytest.mark.parametrize("name", names())
def test_every_file_is_checked(name):
    """Each YAML file is of a kind that some test checks."""
    assert kind_of(name) in KINDS


def test_the_files_of_distributions_exist():
    """Each file that only its paths are checked of exists."""
    assert set() == DISTRIBUTIONS - set(names())


@pytest.mark.parametrize("name", names())
def test_no_probe_of_a_port(name):
    """No probe depends on a TCP port, which any process of the node can take."""
    probes = chain(
        everywhere(read(name), "livenessProbe"),
        everywhere(read(name), "readinessProbe"),
        everywhere(read(name), "startupProbe"),
    )

    for probe in probes:
        assert "hsm-kms-healthcheck" == probe["exec"]["command"][0]


@pytest.mark.parametrize("name", names())
def test_one_image(name):
    """Every file names the image that `make image` makes for this version."""
    images = {each for each in everywhere(read(name), "image") if "hsm-kms" in each}

    assert images <= {f"localhost/hsm-kms:{__version__}"}


@pytest.mark.parametrize("name", names(CONFIG))
def test_configurations_load(name):
    """Each configuration of hsm-kms is valid."""
    assert load(MANIFESTS / name).token.shared


# The static pod


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


def test_softhsm_fits_the_pod(config, container):
    """The example of softhsm2.conf is where the configuration names it."""
    text = (MANIFESTS / "softhsm2.conf").read_text()
    [tokens] = re.findall(r"^directories\.tokendir = (\S+)$", text, re.MULTILINE)

    assert "/etc/hsm-kms/softhsm2.conf" == config.token.env["SOFTHSM2_CONF"]
    assert tokens in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_pod_has_no_privilege_it_does_not_need(pod, container):
    """The pod is not root, has no capability, and can write to volumes only."""
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    } == container["securityContext"]
    assert pod["spec"]["hostNetwork"]


def test_pod_mounts_directories_that_exist_before(pod, owned):
    """The pod mounts directories that must exist, and no single files."""
    volumes = [volume["hostPath"] for volume in pod["spec"]["volumes"]]

    assert {"Directory"} == {volume["type"] for volume in volumes}
    assert set() == {
        volume["path"] for volume in volumes if not volume["path"].startswith("/usr")
    } - set(owned)


def test_one_user_everywhere(pod, owned):
    """The image, the pod and the directories name the same user."""
    users = re.findall(
        r"^USER (\d+):\1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    [user] = set(users) - {"0"}

    assert int(user) == pod["spec"]["securityContext"]["runAsUser"]
    assert ("d", "0700", user, user) == owned["/run/hsm-kms"]
    assert ("d", "0700", user, user) == owned["/var/lib/hsm-kms"]
    assert ("z", "0400", user, user) == owned["/etc/hsm-kms/pin"]


def test_the_kubelet_waits_longer_than_a_probe(config, container):
    """A probe gives up, and says why, before the kubelet ends it."""
    for probe in (container["livenessProbe"], container["readinessProbe"]):
        assert healthcheck.SECONDS < probe["timeoutSeconds"]
        assert 2 == len(probe["exec"]["command"])
    assert str(config.http.admin_socket) == healthcheck.ADMIN_SOCKET


def test_an_api_server_that_is_not_root(tmp_path, owned):
    """What the files offer for it agrees: socket, directory and pod name one group."""
    text = (MANIFESTS / "config.example.yaml").read_text()
    path = tmp_path / "config.yaml"
    path.write_text(uncommented(text, "(?:mode|group): .*"))
    listen = load(path).listen
    [component] = read("components/non-root-apiserver/kustomization.yaml")["patches"]
    [change] = yaml.safe_load(component["patch"])
    text = (MANIFESTS / "tmpfiles.d" / "hsm-kms.conf").read_text()
    kind, mode, user, group = tmpfiles(for_a_group(text))["/run/hsm-kms"]

    assert 0o660 == listen.mode_bits
    assert listen.group == group == str(change["value"])
    assert ("d", "0750", owned["/run/hsm-kms"][2]) == (kind, mode, user)


def test_components_are_offered():
    """kustomization.yaml names every component that there is."""
    found = {path.name for path in (MANIFESTS / "components").iterdir()}

    assert found == set(components())


def test_daemonset_is_the_static_pod(pod):
    """The DaemonSet's pods are the static pod, on every control-plane node."""
    spec = read("daemonset.yaml")["spec"]["template"]["spec"]

    assert pod["spec"] == {
        key: value
        for key, value in spec.items()
        if key not in {"nodeSelector", "tolerations"}
    }


def test_kamaji_is_the_sidecar():
    """Kamaji gets the containers and volumes of the sidecar."""
    pod = read("sidecar/pod.yaml")["spec"]
    [init] = pod["initContainers"]
    ours, api_server = pod["containers"]
    deployment = read("sidecar/kamaji.yaml")["spec"]["controlPlane"]["deployment"]

    assert [init] == deployment["additionalInitContainers"]
    assert [ours] == deployment["additionalContainers"]
    assert pod["volumes"] == deployment["additionalVolumes"]
    assert (
        api_server["volumeMounts"] == deployment["additionalVolumeMounts"]["apiServer"]
    )
    assert set(deployment["extraArgs"]["apiServer"]) <= set(api_server["command"])
    assert pod["securityContext"] == deployment["podSecurityContext"]


def test_sidecar_socket_is_for_the_whole_pod():
    """kube-apiserver may use the sidecar's socket by the pod's fsGroup."""
    config = load(MANIFESTS / "sidecar" / "config.yaml")
    pod = read("sidecar/pod.yaml")["spec"]

    assert (0o660, str(pod["securityContext"]["fsGroup"])) == (
        config.listen.mode_bits,
        config.listen.group,
    )
    for probe in everywhere(pod, "livenessProbe"):
        assert str(config.http.admin_socket) == probe["exec"]["command"][-1]


# EncryptionConfigurations

ENCRYPTION = names("EncryptionConfiguration")


def providers(name):
    """Return the providers of an EncryptionConfiguration, identity as None."""
    [resources] = read(name)["resources"]
    assert ["secrets"] == resources["resources"]
    return [each.get("kms") for each in resources["providers"]]


@pytest.mark.parametrize("name", ENCRYPTION)
def test_api_server_is_pointed_at_a_socket(name):
    """An EncryptionConfiguration names the sockets of our configurations."""
    sockets = {str(load(MANIFESTS / each).listen.socket) for each in names(CONFIG)}
    endpoints = {kms["endpoint"] for kms in providers(name) if kms}

    assert endpoints
    assert endpoints <= {f"unix://{socket}" for socket in sockets | TWO_PLUGINS}


def test_a_name_is_for_one_version():
    """A provider's name is part of stored values: none is used for v1 and v2."""
    versions = {}
    for kms in filter(None, chain.from_iterable(map(providers, ENCRYPTION))):
        versions.setdefault(kms["name"], set()).add(kms["apiVersion"])

    assert {1} == {len(each) for each in versions.values()}


@pytest.mark.parametrize("name", [each for each in ENCRYPTION if "-read" in each])
def test_the_first_step_only_reads(name):
    """Of a pair, the first has the providers of the second, and another one first."""
    first, second = providers(name), providers(name.replace("-read", ""))

    assert first[0] != second[0]
    assert sorted(map(str, first)) == sorted(map(str, second))


# What the API server of each distribution mounts

FLAG = "--encryption-provider-config="


def flag_in(arguments):
    [path] = [each.removeprefix(FLAG) for each in arguments if each.startswith(FLAG)]
    return path


def of_pod(name):
    spec = read(name)["spec"]
    [server] = [each for each in spec["containers"] if each["name"] == "kube-apiserver"]
    mounts = [mount["mountPath"] for mount in server["volumeMounts"]]
    return flag_in(server["command"]), mounts


def of_kubeadm(content):
    server = content["apiServer"]
    arguments = server["extraArgs"]
    if isinstance(arguments, list):  # v1beta4
        arguments = {each["name"]: each["value"] for each in arguments}
    mounts = [each["mountPath"] for each in server["extraVolumes"]]
    return arguments["encryption-provider-config"], mounts


def of_kind(number):
    [node] = read("kind/cluster.yaml")["nodes"]
    path, mounts = of_kubeadm(yaml.safe_load(node["kubeadmConfigPatches"][number]))
    assert set(mounts) <= {each["containerPath"] for each in node["extraMounts"]}
    return path, mounts


def of_rke1():
    server = read("rancher/rke1-cluster.yml")["services"]["kube-api"]
    mounts = [each.split(":")[1] for each in server["extra_binds"]]
    return server["extra_args"]["encryption-provider-config"], mounts


def of_rke2(settings):
    # RKE2 mounts the files that flags name by itself.
    path = flag_in(f"--{each}" for each in settings["kube-apiserver-arg"])
    mounts = [each.split(":")[1] for each in settings["kube-apiserver-extra-mount"]]
    return path, [*mounts, str(Path(path).parent)]


def of_rancher():
    [selector] = read("rancher/rke2-cluster.yaml")["spec"]["rkeConfig"][
        "machineSelectorConfig"
    ]
    return of_rke2(selector["config"])


@pytest.mark.parametrize(
    "arrange",
    [
        lambda: of_pod("kubeadm/kube-apiserver.yaml"),
        lambda: of_pod("sidecar/pod.yaml"),
        lambda: of_kubeadm(read("kubeadm/cluster-configuration.yaml")),
        lambda: of_kind(0),
        lambda: of_kind(1),
        of_rke1,
        lambda: of_rke2(read("rke2/config.yaml")),
        of_rancher,
    ],
    ids=[
        "kubeadm",
        "sidecar",
        "kubeadm init",
        *("kind 1", "kind 2"),
        "rke1",
        "rke2",
        "rancher",
    ],
)
def test_api_server_mounts_directories(arrange):
    """An API server in a pod mounts the directories of its file and of the socket."""
    path, mounts = arrange()
    sockets = {
        str(load(MANIFESTS / each).listen.socket.parent) for each in names(CONFIG)
    }

    assert str(Path(path).parent) in mounts
    assert sockets & set(mounts)


def test_the_same_path_for_kubeadm_and_its_pod():
    """The edited pod and the ClusterConfiguration say the same."""
    assert (
        of_kubeadm(read("kubeadm/cluster-configuration.yaml"))[0]
        == (of_pod("kubeadm/kube-apiserver.yaml")[0])
    )
