"""Run the commands of pages that need a cluster.

Each page begins with what the one before has stored, so all are one test.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.etcd_samples import v2
from tests.harness.etcd_server import make_certificates
from tests.harness.pages import walk
from tests.harness.terminals import Shell
from tests.system.e2e.cluster import UNSAFE
from tests.system.e2e.plugin import Plugin, softhsm_module
from tests.system.e2e.rotating import (
    Operator,
    a_day_later,
    wait_until_current,
    write_under,
)
from tests.system.e2e.stored import BY_A_LOST_KEY
from tests.system.e2e.world import World, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

SOON = "--activate-in 20s --force"
NEW_PIN = "another-pin-of-2026"
PLANTED = "/registry/secrets/default/planted"
BROKEN = "/registry/secrets/default/broken"


class Node(NamedTuple):
    """A node of a cluster, and a shell on it.

    Args:
        world: The cluster.
        shell: Where commands are run.
        names: What the node has in place of the texts of the pages.
    """

    world: World
    shell: Shell
    names: dict[str, str]


@pytest.fixture(scope="module")
def node(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Node]:
    """A cluster that stores one Secret unencrypted, one by KMS v1, others by v2."""
    with running_world(binaries, new_folder()) as world:
        with world.unencrypted("v1"):
            world.create("early", "unencrypted")
        world.create("middle", "by v1")
        world.api.restart(world.encryption("v2", "v1"))
        world.create("late", "by v2")
        pki = make_certificates(world.folder / "pki")
        shell = Shell(
            world.folder,
            world.plugin.config_file,
            [binaries.etcd.parent, binaries.etcdctl.parent, binaries.kubectl.parent],
            {
                "KUBECONFIG": str(world.api.kubeconfig),
                "SOFTHSM2_CONF": str(world.plugin.token.conf),
            },
        )
        names = {
            "https://127.0.0.1:2379": world.etcd.url,
            "/etc/kubernetes/pki/etcd/ca.crt": str(pki.ca),
            "/etc/kubernetes/pki/etcd/server.crt": str(pki.client),
            "/etc/kubernetes/pki/etcd/server.key": str(pki.client_key),
            "/etc/kubernetes/pki/apiserver-etcd-client.crt": str(pki.client),
            "/etc/kubernetes/pki/apiserver-etcd-client.key": str(pki.client_key),
        }
        yield Node(world, shell, names)


def follow_what_the_api_server_stores(node: Node) -> None:
    """The README shows a Secret as kubectl and etcd have it."""
    node.shell.run(
        f"export ETCDCTL_ENDPOINTS={node.world.etcd.url}", typed="", after=""
    )
    with walk(node.shell, "README.md", "Try it (3)", names=node.names) as page:
        page.run("kubectl create")
        page.run("kubectl get")
        page.run("etcdctl get")


def follow_etcd(node: Node) -> None:
    """docs/etcd.md counts, explains and proves what is stored."""
    restored = Plugin(node.world.folder / "restored")
    (node.world.folder / "restored.yaml").symlink_to(restored.config_file)
    with walk(
        node.shell,
        "docs/etcd.md",
        "Count: `hsm-kms etcd scan`",
        "Count: `hsm-kms etcd scan` (2)",
        "Count: `hsm-kms etcd scan` (3)",
        "Explain: `hsm-kms etcd show`",
        "Prove: `hsm-kms etcd verify`",
        "Decrypt: `hsm-kms etcd decrypt`",
        names=node.names,
    ) as page:
        page.run("export")
        page.run("export")
        page.run("hsm-kms etcd scan")
        page.run("hsm-kms etcd scan --fail-if", code=1)
        page.run("etcdctl get")
        node.world.etcd.ctl("snapshot", "save", str(node.world.folder / "snapshot.db"))
        page.run("hsm-kms etcd scan --from-snapshot")
        page.run("hsm-kms etcd show")
        page.run("hsm-kms etcd verify")
        page.run("hsm-kms etcd verify --from-snapshot", code=1)
        page.run("hsm-kms etcd decrypt", typed="y\n", after="[y/N]: ")


def follow_api_server_asked(node: Node) -> None:
    """docs/troubleshooting.md asks the API server for the state of its plugin."""
    Operator(node.world).migrate()
    node.world.api.stop()
    node.world.api.start(node.world.encryption("v2"), UNSAFE)
    with walk(
        node.shell, "docs/troubleshooting.md", "Troubleshooting (3)", names={}
    ) as page:
        page.run("kubectl get --raw")


def pending(world: World) -> str:
    """Return the key_id of the key that becomes current next."""
    states = Operator(world).states()
    [key_id] = [each for each, state in states.items() if state == "pending"]
    return key_id


def follow_rotation(node: Node) -> None:
    """docs/rotation.md replaces a key, step by step."""
    world = node.world
    with walk(
        node.shell,
        "docs/rotation.md",
        "1. Generate the key",
        "1. Generate the key (2)",
        "2. Check that every node has switched",
        "3. Re-encrypt stored objects",
        "4. Prove that nothing needs the old key",
        "5. Retire the old key",
        "6. Destroy it",
        names=node.names,
    ) as page:
        old = world.plugin.status().key_id
        page.run("hsm-kms keys rotate", SOON)
        page.run("hsm-kms keys list")
        new = pending(world)
        wait_until_current(world, new)
        page.run("hsm-kms status")
        write_under(world, "new", new)
        page.run("hsm-kms migrate")
        page.run("hsm-kms etcd scan")
        etcd = world.etcd.url
        page.run("hsm-kms keys retire", etcd, typed="y\n", after="[y/N]: ")
        with a_day_later(node.shell, world):
            page.run(
                "hsm-kms keys destroy", etcd, typed=f"{old}\n", after="destroy it: "
            )


def follow_unreadable(node: Node) -> None:
    """docs/rotation.md looks at an object under a lost key, and deletes it."""
    node.world.etcd.ctl("put", BROKEN, stdin=BY_A_LOST_KEY)
    with walk(
        node.shell,
        "docs/rotation.md",
        "Objects that cannot be read",
        "Objects that cannot be read (2)",
        names={"NAMESPACE": "default", "NAME": "broken"},
    ) as page:
        shown = page.run("hsm-kms etcd show")
        page.run("kubectl delete --raw")

    assert "aescbc" in shown
    assert "default/broken" not in node.world.etcd.secrets()


def plant(world: World) -> None:
    """Import a key of known value, as somebody with the PIN can."""
    token = world.plugin.token
    value = world.folder / "value"
    value.write_bytes(b"k" * 32)
    subprocess.run(
        [
            *("softhsm2-util", "--import", value, "--aes", "--token", "e2e"),
            *("--pin", token.pin_file.read_text(), "--label", "k8s-kek", "--id", "07"),
        ],
        env=os.environ | {"SOFTHSM2_CONF": str(token.conf)},
        check=True,
        capture_output=True,
    )


def follow_stolen_pin(node: Node) -> None:
    """docs/rotation.md changes a stolen PIN, and removes a planted key."""
    world = node.world
    operator = Operator(world)
    plant(world)
    old = world.plugin.status().key_id
    unwanted = operator.on_token("keys", "rotate")["key_id"]
    states = operator.states()
    [foreign] = [key_id for key_id, state in states.items() if state == "foreign"]
    world.etcd.ctl("put", PLANTED, stdin=v2(key_id=foreign))
    pin_file = world.plugin.token.pin_file
    with walk(
        node.shell,
        "docs/rotation.md",
        "The PIN was stolen",
        "The PIN was stolen (2)",
        "The PIN was stolen (3)",
        "The PIN was stolen (4)",
        "The PIN was stolen (5)",
        names=node.names
        | {
            "/usr/lib/softhsm/libsofthsm2.so": str(softhsm_module()),
            "--token-label k8s": "--token-label e2e",
            "/etc/hsm-kms/pin": str(pin_file),
            "FOREIGN_KEY_ID": foreign,
            "OLD_KEY_ID": old,
            "KEY_ID": unwanted,
        },
    ) as page:
        pins = f"--pin {pin_file.read_text()} --new-pin {NEW_PIN}"
        page.run("pkcs11-tool", pins)
        page.run("install", typed=f"{NEW_PIN}\n\x04")
        page.run("hsm-kms check")
        assert unwanted in page.run("hsm-kms keys list")
        page.run("hsm-kms keys cancel", "--yes")
        page.run("hsm-kms etcd scan", code=1)
        assert "not generated on the token" in page.run("hsm-kms etcd verify", code=1)
        world.etcd.ctl("del", PLANTED)
        page.run("hsm-kms keys rotate", SOON)
        new = pending(world)
        wait_until_current(world, new)
        assert f"key_id: {new}\n" in page.run("hsm-kms status")
        write_under(world, "after", new)
        page.run("hsm-kms migrate")
        page.run("hsm-kms keys retire", "--yes")
        page.run("hsm-kms keys retire", "--yes")
        with a_day_later(node.shell, world):
            page.run("hsm-kms keys destroy", typed=f"{foreign}\n", after="destroy it: ")

    assert {new: "current", old: "retired"} == operator.states()


def follow_database_after_a_disaster(node: Node) -> None:
    """docs/etcd.md scans the database of an etcd that runs no more."""
    world = node.world
    world.api.stop()
    world.etcd.stop()
    with walk(
        node.shell,
        "docs/etcd.md",
        "Count: `hsm-kms etcd scan` (4)",
        names={"/var/lib/etcd": str(world.folder / "etcd")},
    ) as page:
        page.run("cp")
        assert "secrets" in page.run("hsm-kms etcd scan")


def test_pages(node):
    """Everything that the pages do with a cluster prints what they show."""
    follow_what_the_api_server_stores(node)
    follow_etcd(node)
    follow_api_server_asked(node)
    follow_rotation(node)
    follow_unreadable(node)
    follow_stolen_pin(node)
    follow_database_after_a_disaster(node)
