"""`hsm-kms migrate` re-encrypts stale objects of a real kube-apiserver."""

from __future__ import annotations

import base64
import json
import signal
import threading

import pytest

from hsm_kms.migrate.listing import PAGE
from tests.harness.wait import patient
from tests.system.e2e.migrating import (
    OBJECTS,
    POLICY,
    TEXT,
    CommandLines,
    Migrating,
    names,
    special_kinds,
    without_versions,
)
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import running_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SVM = "storagemigration.k8s.io"
SERVES_SVM = (
    "--feature-gates=StorageVersionMigrator=true",
    f"--runtime-config={SVM}/v1beta1=true",
)


@pytest.fixture(scope="module")
def migrating(binaries, new_folder):
    """Secrets in clear and by KMS v1, and an API server that now writes by v2."""
    with running_world(binaries, new_folder()) as world:
        made = Migrating(world)
        with world.unencrypted("v1"):
            for namespace, count in OBJECTS.items():
                world.api.kubectl("create", "namespace", namespace)
                made.make(namespace, names(count))
            special_kinds(made)
        made.make("all", ["by-v1"])
        world.api.stop()
        world.api.start(world.encryption("v2", "v1"), *SERVES_SVM)
        yield made


def test_stale_secrets_are_written_anew(migrating):
    """Unencrypted Secrets and those of another provider are re-encrypted by v2."""
    before = migrating.texts("all")

    first = migrating.run("-n", "all", "--rate", "1000")
    second = migrating.run("-n", "all", "--rate", "1000")

    assert "secrets: 4 objects: 4 rewritten\n" == first.stdout
    assert "secrets: 4 objects: 4 up to date already\n" == second.stdout
    assert (0, 0) == (first.returncode, second.returncode)
    assert set() == migrating.stale("all")
    assert before == migrating.texts("all")


def test_special_kinds(migrating):
    """Immutable, service account and half-deleted Secrets keep all their fields."""
    _, before = migrating.world.api.get(migrating.path("kinds"))

    result = migrating.run("-n", "kinds")
    _, after = migrating.world.api.get(migrating.path("kinds"))

    assert "secrets: 4 objects: 4 rewritten\n" == result.stdout
    assert set() == migrating.stale("kinds")
    assert without_versions(before) == without_versions(after)


def test_dry_run_writes_nothing(migrating):
    """--dry-run writes nothing and reports what the API server would accept."""
    before = migrating.stored("dry")

    result = migrating.run("-n", "dry", "--dry-run")

    assert (
        "secrets: 5 objects: 5 would be accepted, nothing was written\n"
        == result.stdout
    )
    assert before == migrating.stored("dry")
    assert set(names(5)) == migrating.stale("dry")


def test_no_write_of_another_is_lost(migrating):
    """Writes of another client to the same objects are never overwritten."""
    api, done = migrating.world.api, threading.Event()
    last = {}

    def write():
        count = 0
        while not done.is_set():
            for name in names(12):
                count += 1
                body = json.loads(api.get(migrating.path("busy", name))[1])
                body["metadata"]["annotations"] = {"count": str(count)}
                code, _ = api.request("PUT", migrating.path("busy", name), body)
                if code == 200:
                    last[name] = str(count)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            result = migrating.run("-n", "busy", "--rate", "1000")
            assert 0 == result.returncode, result.stderr
    finally:
        done.set()
        thread.join()

    items = json.loads(api.get(migrating.path("busy"))[1])["items"]
    assert set() == migrating.stale("busy")
    assert last == {
        item["metadata"]["name"]: item["metadata"]["annotations"]["count"]
        for item in items
    }


def test_deleted_meanwhile_stays_deleted(migrating):
    """Objects that are deleted after they were listed stay deleted."""
    with migrating.held("dying", names(20)[5]) as webhook:
        process = migrating.start("-n", "dying", "--rate", "1000")
        wait_for("the sixth write", webhook.asked.is_set, timeout=60)
        process.send_signal(signal.SIGSTOP)
        webhook.open.set()
        for name in names(20)[10:]:
            migrating.world.api.request("DELETE", migrating.path("dying", name))
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=patient(100))

    assert "secrets: 20 objects: 10 rewritten, 10 deleted meanwhile\n" == out, err
    assert 0 == process.returncode
    assert set(names(10)) == set(migrating.stored("dying"))


def test_resumed_after_an_interruption(migrating):
    """An interrupted migration resumes from its journal."""
    progress = migrating.world.folder / "progress"
    count = OBJECTS["long"]
    arguments = ("-n", "long", "--rate", "60", "--resume", str(progress))
    lines = CommandLines(TEXT)
    lines.start()

    with migrating.held("long", names(count)[PAGE + 5]) as webhook:
        process = migrating.start(*arguments)
        wait_for("a write of the second page", webhook.asked.is_set, timeout=60)
        process.send_signal(signal.SIGINT)
        webhook.open.set()
        out, err = process.communicate(timeout=patient(60))
    left = migrating.stale("long")
    kept = progress.read_text()
    result = migrating.run(*arguments)
    lines.stop()

    assert left
    assert "interrupted after" in err
    assert f"{PAGE} objects done, continuing with secrets" in result.stderr
    assert f"secrets: {count} objects" in result.stdout
    assert 0 == result.returncode
    assert set() == migrating.stale("long")
    assert not progress.exists()
    said = out + err + kept + result.stdout + result.stderr
    assert TEXT not in said
    assert base64.b64encode(TEXT.encode()).decode()[:16] not in said
    assert set() == lines.found


def test_refused_by_admission(migrating):
    """An object that admission refuses is named, without the policy's message."""
    api = migrating.world.api
    stdin = "\n---\n".join(map(json.dumps, POLICY)).encode()
    api.kubectl("create", "-f", "-", stdin=stdin)

    def in_force():
        path = migrating.path("guarded", "s001")
        code, body = api.get(path)
        assert code == 200
        return api.request("PUT", f"{path}?dryRun=All", json.loads(body))[0] != 200

    wait_for("the policy", in_force, timeout=60)

    result = migrating.run("-n", "guarded")

    denied = "ValidatingAdmissionPolicy 'guard' with binding 'guard' denied request"
    assert [
        "secrets: 3 objects: 2 rewritten, 1 refused",
        f"  guarded/s001: {denied}",
    ] == result.stdout.splitlines()
    assert "hsm-kms: 1 object refused, and stored as before" in result.stderr
    assert 1 == result.returncode
    assert {"s001"} == migrating.stale("guarded")


def test_no_right_to_list(migrating):
    """Without the right to list, the error has the API server's words and a hint."""
    kubeconfig = migrating.another_user(lambda user: user.update({"as": "eve"}))

    result = migrating.run(kubeconfig=kubeconfig)

    said = 'User "eve" cannot list resource "secrets" in API group ""'
    first, second = result.stderr.splitlines()
    assert (
        f"hsm-kms: forbidden to list secrets: secrets is forbidden: {said} at the "
        "cluster scope"
    ) == first
    assert (
        "hint: allow the user of the kubeconfig to get, list and update the "
        "resources to migrate"
    ) == second
    assert 1 == result.returncode


def test_no_right_to_update(migrating):
    """Without the right to update, the migration stops early and writes nothing."""
    api = migrating.world.api
    api.kubectl(
        "create", "clusterrole", "reader", "--verb=get,list", "--resource=secrets"
    )
    api.kubectl(
        "create", "clusterrolebinding", "reader", "--clusterrole=reader", "--user=bob"
    )
    kubeconfig = migrating.another_user(lambda user: user.update({"as": "bob"}))

    result = migrating.run("-n", "unwritable", "--rate", "100", kubeconfig=kubeconfig)

    assert (
        "hsm-kms: stopped after 20 objects: 20 secrets in a row were refused, the "
        'last: User "bob" cannot update resource "secrets" in API group ""'
    ) == result.stderr.splitlines()[0]
    assert 1 == result.returncode
    assert set(names(25)) == migrating.stale("unwritable")


def test_exec_plugin(migrating):
    """The migration logs in with an exec plugin if the kubeconfig names one."""
    result = migrating.run(
        "--resource", "namespaces", kubeconfig=migrating.logging_in_by_program()
    )

    assert "up to date already" in result.stdout, result.stderr
    assert 0 == result.returncode


def test_explain(migrating):
    """The API server accepts the manifests that --explain prints."""
    result = migrating.run(
        "--explain", "--resource", "secrets", "--resource", "*.batch"
    )
    made = migrating.world.api.kubectl(
        *("create", "-f", "-", "--dry-run=server", "-o", "name"),
        stdin=result.stdout.encode(),
    )

    assert 0 == result.returncode
    assert 3 == result.stdout.count("kind: StorageVersionMigration")
    assert [
        f"storageversionmigration.{SVM}/hsm-kms-{name}"
        for name in ("secrets", "cronjobs.batch", "jobs.batch")
    ] == [line.rpartition("-")[0] for line in made.decode().splitlines()]


def test_everything_there_is(migrating):
    """`--resource *.*` rewrites objects of every resource; none is refused."""
    result = migrating.run(
        *("--resource", "*.*", "-n", "every"), *("--rate", "5000", "-o", "json")
    )
    counted = json.loads(result.stdout)["resources"]

    assert 0 == result.returncode
    assert {0} == {counts["refused"] for counts in counted.values()}
    assert len(counted) > 40
    assert OBJECTS["every"] == counted["secrets"]["rewritten"]
    assert set() == migrating.stale("every")


def test_verify_after_it(migrating):
    """After a migration `etcd verify` decrypts every encrypted object."""
    migrating.run("-n", "verified")

    result = migrating.verify()
    shown = json.loads(result.stdout)

    values = migrating.world.etcd.secrets().values()
    encrypted = [value for value in values if value.startswith(b"k8s:enc:kms:")]
    assert 0 == result.returncode, result.stderr
    assert len(encrypted) == shown["objects"]
    assert [] == shown["failures"]
