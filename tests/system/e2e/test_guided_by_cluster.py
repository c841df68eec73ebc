"""`hsm-kms rotation` with the cluster's own migration, by a real controller."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.e2e.control_planes import NOTICED, running_nodes, text_of
from tests.system.e2e.guided import HTTP, Guide
from tests.system.e2e.processes import Child, wait_for
from tests.system.e2e.rotating import everything_reads, key_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.e2e.control_planes import ControlPlane
    from tests.system.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900, func_only=True)]

GATE = "--feature-gates=StorageVersionMigrator=true"
SERVED = (GATE, "--runtime-config=storagemigration.k8s.io/v1beta1=true")
CONTROLLERS = "garbage-collector-controller,storage-version-migrator-controller"
WITH = ("--with", "storage-version-migration")
NAMES = [f"s-{number}" for number in range(5)]


@contextmanager
def running_controller(program: Path, world: World) -> Iterator[None]:
    """Run the controller that migrates, and the one that it needs."""
    child = Child(
        [
            program,
            f"--kubeconfig={world.api.kubeconfig}",
            f"--controllers={CONTROLLERS}",
            "--leader-elect=false",
            "--secure-port=0",
            GATE,
        ],
        log=world.folder / "kube-controller-manager.log",
    )
    try:
        yield
    finally:
        child.stop()


def migrations(node: ControlPlane) -> dict[str, list[str]]:
    """Return the true conditions of each StorageVersionMigration by its name."""
    said = node.world.api.kubectl("get", "storageversionmigrations", "-o", "json")
    items: list[dict[str, Any]] = json.loads(said)["items"]
    return {
        each["metadata"]["name"]: [
            condition["type"] for condition in each["status"]["conditions"]
        ]
        for each in items
        if each.get("status", {}).get("conditions")
    }


def test_storage_version_migration(binaries, controller_manager, new_folder):
    """The cluster re-encrypts; a killed command goes on to watch its migration."""
    with running_nodes(binaries, new_folder(), 1, (0.0,), http=HTTP) as [node]:
        for name in NAMES:
            node.world.create(name, text_of(name))
        guide = Guide(node, [node])
        code, said = guide.run("start", "--dry-run", *WITH, *guide.names())
        assert 1 == code, said
        assert "does not serve storagemigration.k8s.io" in said
        assert "by default from Kubernetes 1.37 on" in said

        node.world.api.stop()
        node.world.api.start(node.world.encryption("v2"), *SERVED)
        command = ["start", "--yes", *WITH, *guide.names()]
        for step in ("switch", "settle"):
            with guide.running(*command):
                guide.wait_begun(step)
                guide.kill()
            guide.pass_time(step)
            command = ["resume"]

        new = guide.read()["new_key"]
        code, said = guide.run("resume", "--wait", "2s")
        assert 1 == code, said
        waits = f"waiting: hsm-kms-{new}-secrets-1: no condition yet"
        assert waits.removeprefix("waiting: ") in said
        assert "does kube-controller-manager run the controller" in said

        with guide.running("resume"):
            wait_for("it to wait", lambda: waits in guide.said(), timeout=NOTICED)
            with running_controller(controller_manager, node.world):
                assert 0 == guide.ended(), guide.said()
        assert f"hsm-kms-{new}-secrets-1: Succeeded" in guide.said()
        [(name, conditions)] = migrations(node).items()
        assert f"hsm-kms-{new}-secrets-1" == name
        assert "Succeeded" in conditions
        assert {new} == set(key_ids(node.world).values())
        everything_reads(node.world, NAMES)
