"""What an operator does on a node to run the plugin, and the API server beside it."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tests.harness.manifests import MANIFESTS
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries
    from tests.system.node.kubelet.node import Node

POD: Final = (MANIFESTS / "static-pod.yaml").read_text()
CONFIG: Final = (MANIFESTS / "config.example.yaml").read_text()
TMPFILES: Final = (MANIFESTS / "tmpfiles.d" / "hsm-kms.conf").read_text()
USER: Final = 10001
NOBODY: Final = 65534
API_SERVER_SECONDS: Final = 120.0
AS_USER: Final = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("env", "SOFTHSM2_CONF=/etc/hsm-kms/softhsm2.conf"),
)


def prepare(node: Node, config: str, tmpfiles: str) -> None:
    """Make directories, configuration, PIN and a token, as the guide says.

    Args:
        node: The node.
        config: The text of config.yaml.
        tmpfiles: The text of tmpfiles.d/hsm-kms.conf.
    """
    (node.folder / "tmpfiles" / "hsm-kms.conf").write_text(tmpfiles)
    create_directories(node)
    etc = node.folder / "etc"
    (etc / "config.yaml").write_text(config)
    shutil.copy(MANIFESTS / "softhsm2.conf", etc)
    pin = secrets.token_hex(8)
    (etc / "pin").write_text(pin)
    create_directories(node)
    pins = ("--so-pin", secrets.token_hex(8), "--pin", pin)
    make = ("softhsm2-util", "--init-token", "--free", "--label", "k8s")
    node.run(*AS_USER, *make, *pins)


def create_directories(node: Node) -> None:
    """Run systemd-tmpfiles, as every boot does."""
    node.run("systemd-tmpfiles", "--create", "hsm-kms.conf")


class KmsSocket(Plugin):
    """A client of the plugin that the kubelet runs.

    Args:
        socket: The KMS socket.
    """

    def __init__(self, socket: Path) -> None:  # starts nothing, unlike a Plugin
        self.socket = socket

    def encrypts(self) -> bool:
        """Return True if an Encrypt succeeds, and Decrypt returns its plaintext."""
        plaintext = os.urandom(32)
        try:
            sealed = self.encrypt(plaintext)
            return plaintext == self.decrypt(sealed.ciphertext, sealed.key_id)
        except Exception:  # noqa: BLE001 - whatever keeps it from that
            return False


@contextmanager
def token_away(node: Node) -> Iterator[None]:
    """Take the token's files away, as if it were unplugged, and put them back."""
    token = node.folder / "token"
    elsewhere = token / ".away"
    elsewhere.mkdir()
    moved = [each for each in token.iterdir() if each != elsewhere]
    for each in moved:
        each.rename(elsewhere / each.name)
    try:
        yield
    finally:
        for each in moved:
            (elsewhere / each.name).rename(each)
        elsewhere.rmdir()


@contextmanager
def api_server(
    node: Node, binaries: Binaries, folder: Path, *, root: bool
) -> Iterator[tuple[ApiServer, Etcd]]:
    """Run an API server on the node, with manifests/encryption-config-v2.yaml.

    Args:
        node: The node.
        binaries: The programs of a cluster.
        folder: An empty folder.
        root: False to run it as a user of its own, in the group of the socket.
    """
    shutil.copy(
        MANIFESTS / "encryption-config-v2.yaml",
        node.folder / "encryption" / "config.yaml",
    )
    user = node.command_in_mounts()
    etcd = Etcd(binaries, folder)
    if not root:
        user += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}"]
        user += ["--groups=10002", "--pdeathsig=KILL"]
        binaries = replace(binaries, kube_apiserver=_copied(binaries, folder))
    api = ApiServer(binaries, etcd, folder, user)
    if not root:
        for path in (folder, *folder.glob("*")):
            os.chown(path, NOBODY, NOBODY)
    try:
        api.start(node.encryption_config, ready=False)
        wait_for(
            "readyz",
            lambda: b"readyz check passed" in api.get("/readyz?verbose")[1],
            timeout=API_SERVER_SECONDS,
        )
        yield api, etcd
    finally:
        api.stop()
        etcd.stop()


def _copied(binaries: Binaries, folder: Path) -> Path:
    """Return the program where a user that is not root can run it."""
    copy = folder / "kube-apiserver"
    shutil.copy(binaries.kube_apiserver, copy)
    copy.chmod(0o755)
    return copy


def create(api: ApiServer, name: str) -> None:
    """Create a Secret that contains its own name."""
    literal = f"--from-literal=text={name}"
    api.kubectl("create", "secret", "generic", name, literal)


def stored(etcd: Etcd) -> dict[str, Any]:
    """Return each Secret as etcd holds it, by name."""
    return {path.rpartition("/")[2]: value for path, value in etcd.secrets().items()}
