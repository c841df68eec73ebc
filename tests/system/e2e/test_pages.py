"""Run the commands of pages that need a cluster.

Each page begins with what the one before has stored, so all are one test.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.etcd_samples import v2
from tests.harness.pages import walk
from tests.system.e2e.cluster import UNSAFE
from tests.system.e2e.plugin import Plugin, softhsm_module
from tests.system.e2e.rotating import (
    ACTIVATE_IN,
    Operator,
    a_day_later,
    wait_until_current,
    write_under,
)
from tests.system.e2e.shells import names_on, node_shell, operator_shell
from tests.system.e2e.stored import BY_A_LOST_KEY
from tests.system.e2e.world import World, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.terminals import Shell
    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

SOON = f"--activate-in {ACTIVATE_IN}s --force"
NEW_PIN = "another-pin-of-2026"
PLANTED = "/registry/secrets/default/planted"
BROKEN = "/registry/secrets/default/broken"


class Node(NamedTuple):
    """A node of a cluster, and the shells of its operator.

    Args:
        world: The cluster.
        shell: A shell on the node.
        operator: A shell where kubectl is.
        names: What the node has in place of the texts of the pages.
    """

    world: World
    shell: Shell
    operator: Shell
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
        yield Node(world, node_shell(world), operator_shell(world), names_on(world))


def follow_what_the_api_server_stores(node: Node) -> None:
    """The README shows a Secret as kubectl and etcd have it."""
    for shell in (node.shell, node.operator):
        shell.env["ETCDCTL_ENDPOINTS"] = node.world.etcd.url
    with walk(node.operator, "README.md", "Try it (3)", names=node.names) as page:
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
        page.run("with_etcd hsm-kms etcd scan")
        page.run("with_etcd hsm-kms etcd scan --fail-if", code=1)
        page.run("etcdctl get")
        node.world.etcd.ctl("snapshot", "save", str(node.world.folder / "snapshot.db"))
        elsewhere = [node.operator]
        page.run("hsm-kms etcd scan --from-snapshot", on=elsewhere)
        page.run("with_etcd hsm-kms etcd show")
        page.run("with_etcd hsm-kms etcd verify")
        page.run("hsm-kms etcd verify --from-snapshot", code=1, on=elsewhere)
        page.run("hsm-kms etcd decrypt", typed="y\n", after="[y/N]: ", on=elsewhere)


def follow_api_server_asked(node: Node) -> None:
    """docs/troubleshooting.md asks the API server for the state of its plugin."""
    Operator(node.world).migrate()
    node.world.api.stop()
    node.world.api.start(node.world.encryption("v2"), UNSAFE)
    with walk(
        node.operator, "docs/troubleshooting.md", "Troubleshooting (3)", names={}
    ) as page:
        page.run("kubectl get --raw")


def pending(world: World) -> str:
    """Return the key_id of the key that becomes current next."""
    states = Operator(world).states()
    [key_id] = [each for each, state in states.items() if state == "pending"]
    return key_id


def follow_unreadable(node: Node) -> None:
    """docs/rotation.md looks at an object under a lost key, and deletes it."""
    node.world.etcd.ctl("put", BROKEN, stdin=BY_A_LOST_KEY)
    with walk(
        node.shell,
        "docs/rotation.md",
        "Objects that cannot be read",
        "Objects that cannot be read (2)",
        names=node.names | {"NAMESPACE": "default", "NAME": "broken"},
    ) as page:
        shown = page.run("with_etcd hsm-kms etcd show")
        page.run("kubectl delete --raw", on=[node.operator])

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
        page.run("hsm-kms keys cancel", typed="y\n", after="[y/N]: ")
        page.run("with_etcd hsm-kms etcd scan", code=1)
        verified = page.run("with_etcd hsm-kms etcd verify", code=1)
        assert "not generated on the token" in verified
        world.etcd.ctl("del", PLANTED)
        page.run("hsm-kms keys rotate", SOON)
        new = pending(world)
        wait_until_current(world, new)
        assert f"key_id: {new}\n" in page.run("hsm-kms status")
        write_under(world, "after", new)
        page.run("hsm-kms migrate", on=[node.operator])
        page.run("with_etcd hsm-kms keys retire")
        page.run("with_etcd hsm-kms keys retire")
        with a_day_later(node.shell, world):
            page.run("with_etcd hsm-kms keys destroy")

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
        assert "secrets" in page.run("hsm-kms etcd scan", on=[node.operator])


def test_pages(node):
    """Everything that the pages do with a cluster prints what they show."""
    follow_what_the_api_server_stores(node)
    follow_etcd(node)
    follow_api_server_asked(node)
    follow_unreadable(node)
    follow_stolen_pin(node)
    follow_database_after_a_disaster(node)
