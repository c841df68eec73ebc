"""Test `hsm-kms init`: what it writes, for whom, and what it refuses."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hsm_kms.cli.init import files
from hsm_kms.cli.init.choices import CREDENTIAL, FORMS, Choices
from hsm_kms.config.load import load
from tests.harness import command_line
from tests.harness.command_line import HSM_KMS, run
from tests.harness.manifests import MANIFESTS
from tests.harness.processes import namespace_prefix
from tests.harness.softhsm import softhsm_module
from tests.harness.wait import patient

SOFTHSM = "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"
LUNA = "/usr/safenet/lunaclient/lib/libCryptoki2_64.so"
DEFAULTS = Choices(
    cluster="kubeadm",
    form="static-pod",
    module=SOFTHSM,
    token_label="k8s",  # noqa: S106 - not a secret
    pin_file="/etc/hsm-kms/pin",
    socket="/run/hsm-kms/kms.sock",
    scope="",
    shared=True,
)
OTHER = replace(
    DEFAULTS,
    module=LUNA,
    token_label='a: "b" #',  # noqa: S106
    pin_file="/etc/hsm-kms/other.pin",
    socket="/run/kms-plugin/s",
    scope="/run/hsm-kms",
    shared=False,
)
CLUSTERS_AND_FORMS = [
    (cluster, form) for cluster in FORMS for form in ("static-pod", "systemd")
]


def options(choices):
    """Return the options of `init` for choices."""
    return (
        *("--cluster", choices.cluster, "--run-as", choices.form),
        *("--module", choices.module, "--token-label", choices.token_label),
        *("--pin-file", choices.pin_file, "--socket", choices.socket),
        *("--scope", choices.scope, "--shared" if choices.shared else "--not-shared"),
    )


def written(directory, choices):
    """Run `init` with choices, and return name → content of what it wrote."""
    ended = run("init", directory, *options(choices), "--yes")
    assert 0 == ended.returncode, ended.stderr
    found = [path for path in directory.rglob("*") if path.is_file()]
    texts = {str(path.relative_to(directory)): path.read_text() for path in found}
    assert {0o644} == {path.stat().st_mode & 0o777 for path in found}
    named = re.findall(r"^  (\S+)  ", ended.stdout, re.MULTILINE)
    assert sorted(texts) == sorted(named)
    return texts


@pytest.mark.parametrize(("cluster", "form"), CLUSTERS_AND_FORMS)
def test_defaults_are_the_manifests(directory, cluster, form):
    """With the values of the manifests, what is written is the manifests."""
    texts = written(directory / "out", replace(DEFAULTS, cluster=cluster, form=form))
    own = texts.pop("config.yaml")
    differ = {n for n, text in texts.items() if text != (MANIFESTS / n).read_text()}
    config = (MANIFESTS / "config.example.yaml").read_text()
    for_systemd = config.replace(" for the static pod beside this file.", "")
    module = for_systemd.replace(f"{files.IN_POD}/libsofthsm2.so", SOFTHSM)

    noted = {name for name in texts if name.startswith("encryption-config")}
    assert differ == (noted if cluster == "rke2" else set())
    assert own == (config if form == "static-pod" else module)


@pytest.mark.parametrize(("cluster", "form"), CLUSTERS_AND_FORMS)
def test_no_default_is_left(directory, cluster, form):
    """With other values, no file names a value of the manifests any more."""
    texts = written(directory / "out", replace(OTHER, cluster=cluster, form=form))
    replaced = (
        *("/run/hsm-kms", r"/etc/hsm-kms/pin\b", "softhsm", "SOFTHSM"),
        *("hsm-kms-token", r"label: k8s$", "shared: true"),
    )
    for name, text in texts.items():
        settings = "\n".join(
            line
            for line in text.splitlines()
            if not line.lstrip().startswith(("#", "scope"))
        )
        for pattern in replaced:
            assert not re.search(pattern, settings, re.MULTILINE), (name, pattern)
    config = load(directory / "out" / "config.yaml")

    assert OTHER.token_label == config.token.token_label
    assert OTHER.scope == config.scope
    assert OTHER.pin_file == str(config.token.pin_file)
    assert OTHER.socket == str(config.listen.socket)
    assert "/run/kms-plugin/admin.sock" == str(config.http.admin_socket)
    assert {} == config.token.env
    assert not config.token.shared


def test_every_change_is_one_of_some_file():
    """No pattern is left that finds nothing in the manifests."""
    unused = set()
    used = set()
    credential = replace(OTHER, form="systemd", pin_file=str(CREDENTIAL))
    for (cluster, form), base in itertools.product(
        CLUSTERS_AND_FORMS, (DEFAULTS, OTHER, credential)
    ):
        choices = replace(base, cluster=cluster, form=form)
        texts = [
            (MANIFESTS / each.manifest).read_text() for each in files.needed(choices)
        ]
        for pattern, _ in files._changes(choices):
            found = any(re.search(pattern, text, re.MULTILINE) for text in texts)
            (used if found else unused).add(pattern)
            assert 0 == re.compile(pattern).groups

    assert set() == unused - used
    assert len(used) > 15


def test_the_pod_has_what_its_configuration_names(directory):
    """Module, PIN file and socket of the configuration are on volumes of the pod."""
    texts = written(directory / "out", OTHER)
    pod = yaml.safe_load(texts["static-pod.yaml"])
    [container] = pod["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {
        each["name"]: each["hostPath"]["path"] for each in pod["spec"]["volumes"]
    }
    config = load(directory / "out" / "config.yaml")

    assert set(mounts) == set(volumes) == {"config", "module", "state", "socket"}
    assert mounts["module"] == str(config.token.module.parent)
    assert volumes["module"] == str(Path(LUNA).parent)
    assert Path(LUNA).name == config.token.module.name
    assert "/run/kms-plugin" == mounts["socket"] == volumes["socket"]
    admin = str(config.http.admin_socket)
    for probe in ("livenessProbe", "readinessProbe"):
        assert admin == container[probe]["exec"]["command"][-1]


def test_the_api_server_gets_the_socket_and_its_directory(directory):
    """The EncryptionConfigurations name the socket, other files its directory."""
    for cluster in ("kubeadm", "rke2"):
        texts = written(directory / cluster, replace(OTHER, cluster=cluster))
        configs = [text for name, text in texts.items() if "encryption" in name]
        lines = [text for name, text in texts.items() if name.startswith(cluster)]

        assert 3 == len(configs)
        assert all("endpoint: unix:///run/kms-plugin/s\n" in text for text in configs)
        assert lines
        for text in lines:
            assert re.search(r"/run/kms-plugin(:|,|$)", text, re.MULTILINE)


def providers(path):
    """Return the kinds of an EncryptionConfiguration's providers, in order."""
    [resource] = yaml.safe_load(path.read_text())["resources"]
    return [kind for each in resource["providers"] for kind in each]


def test_readers_come_first(directory):
    """Step 1 decrypts only, step 2 encrypts, step 3 refuses what is unencrypted."""
    ended = run("init", directory / "out", *options(DEFAULTS), "--yes")
    found = re.findall(r"^  (encryption\S+) .*, step (\d)$", ended.stdout, re.MULTILINE)
    first = {step: providers(directory / "out" / name) for name, step in found}

    assert ["1", "2", "3"] == sorted(first)
    assert ["identity", "kms"] == first["1"]
    assert ["kms", "identity"] == first["2"]
    assert ["kms"] == first["3"]


def test_rke2_is_warned_of(directory):
    """Whoever has RKE2 is told to keep its provider, by the command and the files."""
    out = directory / "out"
    ended = run("init", out, *options(replace(DEFAULTS, cluster="rke2")), "--yes")
    told = [ended.stdout, *(path.read_text() for path in out.glob("encryption-*"))]

    assert 4 == len(told)
    assert all("RKE2 encrypts Secrets already: add its provider" in x for x in told)


def test_service_with_a_credential(directory):
    """A PIN that systemd loads comes with the drop-in, and without a PIN file."""
    choices = replace(OTHER, cluster="none", form="systemd", pin_file=str(CREDENTIAL))
    texts = written(directory / "out", choices)

    assert "LoadCredentialEncrypted=pin:" in texts["systemd/pin-credential.conf"]
    assert "\nz " not in texts["tmpfiles.d/hsm-kms.conf"]
    assert "RuntimeDirectory=kms-plugin\n" in texts["systemd/hsm-kms.service"]
    assert CREDENTIAL == load(directory / "out" / "config.yaml").token.pin_file


ANSWERS = {
    "": "k3s\n\n/m.so\n\n\n\n\n\n",
    "yes": f"k3s\nsystemd\n/m.so\nk8s\n{DEFAULTS.pin_file}\n{DEFAULTS.socket}\n\nyes\n",
    "options": "k3s\n/m.so\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_questions(directory, name):
    """What no option gives is asked for; an empty answer is the default."""
    out = directory / "out"
    given = ("--run-as", "systemd", "--token-label", "k8s", "--shared")
    more = ("--scope", "", "--pin-file", DEFAULTS.pin_file, "--socket", DEFAULTS.socket)
    arguments = (*given, *more) if name == "options" else ()
    ended = run("init", out, *arguments, stdin=ANSWERS[name])

    assert 0 == ended.returncode, ended.stderr
    assert "/m.so" == str(load(out / "config.yaml").token.module)
    assert (out / "k3s" / "config.yaml").exists()
    assert "PIN:" not in ended.stderr


def test_no_answer(directory):
    """Without an answer nothing is written."""
    ended = run("init", directory / "out", stdin="kubeadm\n")

    assert (1, "") == (ended.returncode, ended.stdout)
    assert "stdin ended before the question was answered" in ended.stderr
    assert not (directory / "out").exists()


HOST_PART = (
    "has a host part, which Kubernetes would silently drop; write unix:/// with three "
    "slashes, then the path"
)
SIZE = "must be 1 to 32 bytes of text without control characters"
IN_ETC = "must be in /etc/hsm-kms, because the pod mounts that directory"
IN_RUN = "must be /run/DIRECTORY/NAME, so that systemd can make the directory"
BY_HAND = (
    "must consist of letters, digits and ._/+@-, or the files must be written by hand"
)
REFUSED = {
    "a value that the configuration refuses": (
        {"token_label": "", "socket": "unix://host/s", "module": "m.so"},
        [
            f"listen.socket: {HOST_PART}",
            "token.module: must be an absolute path, beginning with /",
            f"token.token_label: {SIZE}",
            f"--socket: {BY_HAND}",
        ],
    ),
    "a path that needs quotation": (
        {"module": "/opt/my hsm/m.so"},
        [f"--module: {BY_HAND}"],
    ),
    "a PIN file that the pod does not see": (
        {"pin_file": "/root/pin"},
        [f"--pin-file: {IN_ETC}"],
    ),
    "a directory that systemd does not make": (
        {"form": "systemd", "socket": "/run/a/b/kms.sock"},
        [f"--socket: {IN_RUN}"],
    ),
    "a credential of another unit": (
        {"form": "systemd", "pin_file": "/run/credentials/other.service/pin"},
        [f"--pin-file: the credential of the service is {CREDENTIAL}"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(directory, name):
    """All faults are told at once, in the words of the configuration."""
    values, faults = REFUSED[name]
    out = directory / "out"
    ended = run("init", out, *options(replace(DEFAULTS, **values)), "--yes")
    told = "".join(f"hsm-kms: {fault}\n" for fault in faults)

    assert (2, "", told) == (ended.returncode, ended.stdout, ended.stderr)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--cluster", "--module"])
def test_what_has_no_default(directory, option):
    """With --yes, what has no default must be given."""
    arguments = {"--cluster": "none", "--module": SOFTHSM}
    del arguments[option]
    given = itertools.chain.from_iterable(arguments.items())
    ended = run("init", directory / "out", *given, "--yes")

    assert 2 == ended.returncode
    assert f"with --yes, {option} must be given" in ended.stderr


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_nothing_is_overwritten(directory, kind):
    """If one file exists, whatever it is, nothing is written at all."""
    out = directory / "out"
    there = out / "encryption-config-v2.yaml"
    out.mkdir()
    if kind == "file":
        there.write_text("mine")
    elif kind == "link":
        there.symlink_to("/nonexistent")
    else:
        there.mkdir()
    ended = run("init", out, *options(DEFAULTS), "--yes")

    assert 1 == ended.returncode
    assert f"{there} exists, so nothing was written\nhint: choose" in ended.stderr
    assert [there] == list(out.iterdir())
    assert "file" != kind or "mine" == there.read_text()


def test_a_directory_that_cannot_be_made(directory):
    """A directory that cannot be made is reported with its reason."""
    (directory / "file").touch()
    ended = run("init", directory / "file" / "out", *options(DEFAULTS), "--yes")

    assert 1 == ended.returncode
    assert "cannot write" in ended.stderr
    assert "Not a directory" in ended.stderr


def test_the_installed_package_has_the_files(directory):
    """The package contains the manifests, also when it was built as a wheel."""
    out = directory / "out"
    ended = command_line.run_fork("init", out, *options(DEFAULTS), "--yes")

    assert 0 == ended.returncode, ended.stderr
    expected = (MANIFESTS / "static-pod.yaml").read_text()
    assert expected == (out / "static-pod.yaml").read_text()


# Makes, in a namespace of its own, a node on which the files are installed.
NODE = """
set -e
ip link set lo up
cp -a /etc {at}/etc
rm -rf {at}/etc/hsm-kms
mount --bind {at}/etc /etc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -m 0700 /run/hsm-kms /var/lib/hsm-kms
mkdir -m 0750 /etc/hsm-kms
cp {at}/out/softhsm2.conf {at}/out/config.yaml /etc/hsm-kms
echo 1234 >/etc/hsm-kms/pin
chmod 0400 /etc/hsm-kms/pin
"""
CHECKS = """
for step in v2-read v2 v2-only; do
    "$@" --encryption-config "$0/encryption-config-$step.yaml"
done
"""
POD = """
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir {in_pod}
mount --bind {modules} {in_pod}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can copy /etc")
@pytest.mark.parametrize("form", ["static-pod", "systemd"])
def test_check_is_content(directory, form):
    """`check --offline` finds nothing wrong where the files are installed."""
    prefix = namespace_prefix() or pytest.skip("no mount namespace can be made here")
    module = os.path.realpath(softhsm_module())
    written(directory / "out", replace(DEFAULTS, form=form, module=module))
    script = NODE.format(at=directory)
    if form == "static-pod":
        script += POD.format(in_pod=files.IN_POD, modules=Path(module).parent)
    check = [*HSM_KMS, "check", "--offline"]
    ended = subprocess.run(
        [*prefix, "--net", "sh", "-c", script + CHECKS, directory / "out", *check],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )

    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert 3 == ended.stdout.count("✓ PIN file /etc/hsm-kms/pin")
    assert 3 == ended.stdout.count("✓ KMS socket /run/hsm-kms/kms.sock")
    fits = "✓ EncryptionConfiguration: endpoint unix:///run/hsm-kms/kms.sock\n"
    assert 3 == ended.stdout.count(fits)
    assert "✗" not in ended.stdout
