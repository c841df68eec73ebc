"""The commands of the guides of the image, with podman in place of docker."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hsm_kms import __version__
from tests.harness.pages import walk
from tests.harness.softhsm import PIN, TOKEN_LABEL, SoftHsm, softhsm_module
from tests.harness.wait import patient, wait_for
from tests.system.e2e import binaries as programs
from tests.system.e2e.secure_etcd import SecureEtcd
from tests.system.node.buildah import call
from tests.system.node.containers import USER
from tests.system.node.images import ROOT

MODULE = "/opt/hsm-kms-module"
TOKENS = "/var/lib/hsm-kms-token"


class Shell:
    """Run the lines of a page in a folder, with some programs of the test.

    Args:
        folder: The working directory; the programs are in its folder `bin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"HOME": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        (folder / "bin").mkdir(exist_ok=True)

    def program(self, name: str, *command: object) -> None:
        """Make a program that runs a command with its own arguments at the end."""
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
        path.chmod(0o755)

    def run(self, command: str, *, typed: str = "", after: str = "") -> tuple[int, str]:
        """Run a line, and return its exit code and what it printed."""
        assert not typed + after
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=patient(600),
        )
        return ended.returncode, ended.stdout

    def says(self, words: str, command: str) -> None:
        """Wait until a command prints some words."""
        printed = ""

        def said() -> bool:
            nonlocal printed
            printed = self.run(command)[1]
            return words in printed

        try:
            wait_for(said, 120)
        except AssertionError as error:
            raise AssertionError(f"{command} prints:\n{printed}") from error


def with_podman(folder, *images):
    """Return a shell in which docker is podman, with these images."""
    if not shutil.which("podman"):
        pytest.skip("podman is not installed; `make test-node` installs it")
    shell = Shell(folder)
    settings = folder / "containers.conf"
    settings.write_text(
        # podman's own limits can be more than a machine in a sandbox allows.
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    shell.env["CONTAINERS_CONF"] = str(settings)
    storage = ["--root", folder / "storage", "--runroot", folder / "run"]
    shell.program("docker", "podman", "--storage-driver", "vfs", *storage)
    for image in images:
        code, said = shell.run(f"docker load --quiet --input {image.archive}")
        assert 0 == code, said
    return shell


@pytest.fixture
def docker(directory, request):
    """Make shells with podman in place of docker; all containers end with the test."""
    made = []

    def make(*images):
        made.append(with_podman(directory, *images))
        return made[-1]

    yield make
    for shell in made:
        shell.run("docker rm --all --force --time 0")


def test_try_it(docker, dev_image):
    """The image with SoftHSM2 is tried, restarted and removed as the page says."""
    shell = docker(dev_image)
    with walk(
        shell,
        "docs/install/containers.md",
        "Try it with SoftHSM",
        "Try it with SoftHSM (2)",
        names={},
    ) as page:
        page.run("docker run --detach")
        status = "docker exec hsm-kms hsm-kms status"
        shell.says("8 idle of 8", status)
        before = page.run(status)
        page.run("docker exec hsm-kms hsm-kms check")
        page.run("docker exec hsm-kms hsm-kms probe")
        page.run("docker restart")
        shell.says("healthz: ok", status)
        key_id = before.splitlines()[1].removeprefix("key_id: ")
        assert key_id in page.run("docker exec hsm-kms hsm-kms keys list")
        page.run("docker rm")
        page.run("docker volume rm")


@pytest.fixture
def node(directory):
    """What the page's commands mount: a configuration, a PIN, a token, directories."""
    folders = {
        inside: directory / Path(inside).name
        for inside in ("/etc/hsm-kms", TOKENS, "/var/lib/hsm-kms", "/run/hsm-kms")
    }
    folders["/etc/hsm-kms"] = directory / "etc"
    folders["/run/hsm-kms"] = directory / "run-hsm-kms"
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    made = SoftHsm(directory / "made")
    made.init_token()
    shutil.copytree(made.tokens, folders[TOKENS], dirs_exist_ok=True)
    etc = folders["/etc/hsm-kms"]
    (etc / "softhsm2.conf").write_text(f"directories.tokendir = {TOKENS}\n")
    (etc / "pin").write_text(PIN)
    (etc / "pin").chmod(0o400)
    module = Path(softhsm_module()).resolve()
    config = yaml.safe_load((ROOT / "manifests/config.example.yaml").read_text())
    config["token"] |= {
        "module": f"{MODULE}/{module.name}",
        "token_label": TOKEN_LABEL,
    }
    config["http"] = {"listen": None, "admin_socket": "/run/hsm-kms/admin.sock"}
    (etc / "config.yaml").write_text(yaml.safe_dump(config))
    for folder in folders.values():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER)
    names = {f"--volume {inside}:": f"--volume {at}:" for inside, at in folders.items()}
    names["--volume /usr/lib/x86_64-linux-gnu/softhsm:"] = f"--volume {module.parent}:"
    return names


def test_serve_and_check(docker, image, node):
    """The image serves with a module, a token and a configuration of the node."""
    shell = docker(image)
    with walk(
        shell, "docs/install/containers.md", "Serve with a module", names=node
    ) as page:
        page.run("docker run --detach")
        generate = "docker exec hsm-kms hsm-kms keys generate"
        shell.says("generated", generate)
        shell.says("healthz: ok", "docker exec hsm-kms hsm-kms status")
        page.run("docker exec hsm-kms hsm-kms check")
    assert 0 == shell.run("docker rm --force hsm-kms")[0]
    with walk(
        shell, "docs/install/containers.md", "Single commands", names=node
    ) as page:
        page.run("docker run --rm")


def test_etcd(docker, image, directory):
    """`hsm-kms etcd scan` in the image reads what etcdctl prints, and etcd itself."""
    try:
        binaries = programs.cluster()
    except programs.MissingToolError as error:
        pytest.skip(str(error))
    shell = docker(image)
    etcd = SecureEtcd(binaries, directory)
    try:
        etcd.ctl("put", "/registry/secrets/default/db", stdin=b"k8s\0" + bytes(40))
        pki = directory / "client"
        pki.mkdir()
        shutil.copy(etcd.pki.ca, pki / "ca.crt")
        shutil.copy(etcd.pki.client, pki / "server.crt")
        shutil.copy(etcd.pki.client_key, pki / "server.key")
        shell.program("etcdctl", binaries.etcdctl, *etcd.options)
        names = {
            "/etc/kubernetes/pki/etcd": str(pki),
            "127.0.0.1:2379": etcd.endpoint,
        }
        with walk(
            shell,
            "docs/install/containers.md",
            "Single commands (2)",
            "Single commands (3)",
            names=names,
        ) as page:
            assert "secrets" in page.run("etcdctl get")
            assert "secrets" in page.run("docker run")
    finally:
        etcd.stop()


def test_archive(docker, image):
    """The image comes to a node as an archive that is checked before it is loaded."""
    shell = docker(image)
    with walk(
        shell,
        "docs/install/air-gapped.md",
        "The image",
        "The image (2)",
        names={},
    ) as page:
        page.run("docker save")
        page.run("sha256sum")
        shell.run("docker rmi --force localhost/hsm-kms:0.1.0")
        page.run("sha256sum --check")
        page.run("docker load")
    assert 0 == shell.run(f"docker image exists localhost/hsm-kms:{__version__}")[0]


def test_wheelhouse(directory):
    """hsm-kms is installed from a wheelhouse where there is no network."""
    checkout = directory / "checkout"
    checkout.mkdir()
    for name in ("hsm_kms", "manifests", "requirements"):
        shutil.copytree(
            ROOT / name,
            checkout / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    shell = Shell(checkout)
    shell.program("python3", sys.executable)
    cache = call([sys.executable, "-m", "pip", "cache", "dir"])
    shell.env["PIP_CACHE_DIR"] = cache.strip()
    away = {"/opt/hsm-kms": str(directory / "opt")}
    with walk(
        shell, "docs/install/air-gapped.md", "The wheelhouse", names=away
    ) as page:
        page.run("python3 -m pip download")
        page.run("python3 -m venv")
        page.run("build/bin/pip install")
        page.run("build/bin/pip wheel")
        page.run("cp")
        page.run("(cd")
    offline = Offline(checkout)
    with walk(
        offline, "docs/install/air-gapped.md", "The wheelhouse (2)", names=away
    ) as page:
        page.run("(cd")
        page.run("python3 -m venv")
        page.run("/opt/hsm-kms/bin/pip install", "")
        page.run("/opt/hsm-kms/bin/pip install")
        page.run("/opt/hsm-kms/bin/hsm-kms --version")


class Offline(Shell):
    """A shell without any network."""

    def run(self, command: str, *, typed: str = "", after: str = "") -> tuple[int, str]:
        """Run a line in a network namespace of its own."""
        quoted = shlex.quote(command)
        line = f"unshare --net bash -c {quoted}"
        return super().run(line, typed=typed, after=after)
