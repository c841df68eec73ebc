"""The old machines are gone: follow docs/disaster-recovery.md on new ones.

The backup is made on a cluster of KMS v1 and v2. Then everything is removed that the
page does not say to back up, and what it says to back up is restored elsewhere.
"""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness.pages import walk
from tests.harness.terminals import Shell
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.secure_etcd import hsm_kms
from tests.system.e2e.world import running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries
    from tests.system.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

BY_V1, BY_V2 = ["middle"], ["db", "early", "late"]


@pytest.fixture(scope="module")
def world(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[World]:
    """A cluster with a scope, which stores a Secret by KMS v1 and others by v2."""
    with running_world(binaries, new_folder()) as world:
        world.plugin.configure(scope="prod")
        world.plugin.restart()
        world.api.start(world.encryption("v1"))
        for name in BY_V1:
            world.create(name, f"text of {name}")
        world.api.restart(world.encryption("v2", "v1"))
        for name in BY_V2:
            world.create(name, f"text of {name}")
        yield world


class Site:
    """The paths of the page in a test, and a shell that stands beside them.

    Args:
        world: The cluster.
    """

    def __init__(self, world: World) -> None:
        binaries = world.binaries
        self.plugin = world.folder / "plugin"
        self.tokens = self.plugin / "token" / "tokens"
        self.state = self.plugin / "state"
        self.etcd = world.folder / "etcd"
        self.names = {
            "/var/lib/softhsm/tokens": str(self.tokens),
            "/etc/hsm-kms/config.yaml": str(world.plugin.config_file),
            "/var/lib/hsm-kms": str(self.state),
            "/var/lib/etcd": str(self.etcd),
        }
        self.shell = Shell(
            world.folder,
            world.plugin.config_file,
            [each.parent for each in (binaries.etcd, binaries.etcdctl)],
            {"ETCDCTL_ENDPOINTS": world.etcd.url},
        )
        self.shell.env["PATH"] = f"{binaries.kubectl.parent}:{self.shell.env['PATH']}"


def lose_everything(world: World, site: Site) -> None:
    """Remove what a machine holds, but for the PIN, which is kept elsewhere."""
    world.api.stop()
    world.plugin.stop()
    world.etcd.stop()
    for each in (site.tokens, site.state, site.etcd):
        shutil.rmtree(each)
    world.plugin.config_file.unlink()


def decrypted(world: World, etcd: Etcd, name: str) -> str:
    """Return the text of a Secret as `etcd decrypt` reads it in a live etcd."""
    config = ("--config", world.plugin.config_file, "--endpoints", etcd.url)
    key = f"/registry/secrets/default/{name}"
    printed = hsm_kms("etcd", "decrypt", key, "--reveal", *config).stdout
    return base64.b64decode(json.loads(printed)["data"]["text"]).decode()


def test_page(world, new_folder):
    """A snapshot, the token and the configuration are enough to restore all Secrets."""
    site = Site(world)
    before = world.etcd.secrets()
    key_id = world.plugin.status().key_id
    with walk(
        site.shell, "docs/disaster-recovery.md", "Make the backup", names=site.names
    ) as page:
        page.run("mkdir")
        page.run("etcdctl snapshot save")
        page.run("cp")
        page.run("cp")
        assert key_id in page.run("hsm-kms etcd scan")
    lose_everything(world, site)

    with walk(
        site.shell,
        "docs/disaster-recovery.md",
        "The drill",
        "The drill (2)",
        names=site.names,
    ) as page:
        page.run("install")
        page.run("cp")
        page.run("cp")
        assert key_id in page.run("hsm-kms check")
        page.run("hsm-kms etcd verify")
        page.run("hsm-kms etcd decrypt")
        stored = (world.folder / "object").read_bytes()
        assert stored.startswith(b"k8s\0")
        assert b"text of db" in stored
        page.run("shred")
        assert not (world.folder / "object").exists()

    with walk(
        site.shell,
        "docs/disaster-recovery.md",
        "Restore",
        "Restore (2)",
        "Restore (3)",
        names=site.names,
    ) as page:
        page.run("etcdutl snapshot restore")
        etcd = Etcd(world.binaries, world.folder)
        api = ApiServer(world.binaries, etcd, new_folder())
        try:
            assert before == etcd.secrets()
            world.plugin.start()
            page.run("hsm-kms status")
            assert key_id == world.plugin.status().key_id
            api.start(world.encryption("v2", "v1"))
            site.shell.env["KUBECONFIG"] = str(api.kubeconfig)
            page.run("kubectl get --raw")
            page.run("kubectl get secrets")
            found = json.loads(api.kubectl("get", "secrets", "-o", "json"))
            texts = {
                each["metadata"]["name"]: base64.b64decode(
                    each["data"]["text"]
                ).decode()
                for each in found["items"]
            }
            assert {name: f"text of {name}" for name in BY_V1 + BY_V2} == texts
            assert texts == {name: decrypted(world, etcd, name) for name in texts}
        finally:
            api.stop()
            etcd.stop()
