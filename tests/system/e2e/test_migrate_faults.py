"""`hsm-kms migrate` in clusters where something is broken, and with other kubectls."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient
from tests.system.e2e.cluster import UNSAFE
from tests.system.e2e.migrating import Migrating, names
from tests.system.e2e.page import shown
from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import BY_A_LOST_KEY
from tests.system.e2e.webhook import (
    CHANGED,
    Webhook,
    aggregated,
    mutating,
    policy,
    widgets,
)
from tests.system.e2e.world import prefix, running_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

# A policy, or a webhook, is obeyed for a while after it is deleted. So each has a
# namespace of its own.
OBJECTS = {"mutated": 3, "policed": 1, "bad": 24, "every": 3, "wrapped": 1}
OBJECTS |= {"broken": 3, "expiring": 250}
KUBECTL_OR_NONE = ("?limit=500", "")  # limits of a list; controllers give none
FAST = ("--rate", "1000")
IGNORED = "ignoreStoreReadErrorWithClusterBreakingPotential=true"
CUT = b"k8s:enc:kms:v2:hsm:\x0a\x7f"


@pytest.fixture(scope="module")
def migrating(binaries, new_folder):
    """Unencrypted Secrets, and an API server that now encrypts them."""
    with running_world(binaries, new_folder()) as world:
        made = Migrating(world)
        with world.unencrypted("v2"):
            for namespace, count in OBJECTS.items():
                world.api.kubectl("create", "namespace", namespace)
                made.make(namespace, names(count))
        yield made


@pytest.fixture(scope="module")
def webhook(new_folder):
    with Webhook(new_folder() / "webhook") as running:
        yield running


@contextlib.contextmanager
def created(migrating, *objects):
    """Let these objects exist in the cluster for the time of the block."""
    stdin = "\n---\n".join(map(json.dumps, objects)).encode()
    migrating.world.api.kubectl("create", "-f", "-", stdin=stdin)
    try:
        yield
    finally:
        migrating.world.api.kubectl("delete", "-f", "-", stdin=stdin)


@contextlib.contextmanager
def damaged(migrating, namespace, values):
    """Store these values for Secrets, and delete them at the end."""
    etcd = migrating.world.etcd
    keys = [f"/registry/secrets/{namespace}/{name}" for name in values]
    for key, value in zip(keys, values.values(), strict=True):
        etcd.ctl("put", key, stdin=value)
    try:
        yield
    finally:
        for key in keys:
            etcd.ctl("del", key)


def test_changed_by_a_webhook(migrating, webhook):
    """What a mutating webhook changes is named: by a dry run before it happens."""
    dry, wet = ("-n", "mutated", "--dry-run"), ("-n", "mutated", "-o", "json")
    changed = "data[text], metadata.labels[seen]"
    with created(migrating, mutating(webhook, "mutated")):
        wait_for(
            "the webhook",
            lambda: "would be changed" in migrating.run(*dry).stdout,
            timeout=60,
        )
        before = migrating.stored("mutated")
        first = migrating.run(*dry)
        unwritten = migrating.stored("mutated")
        allowed = migrating.run(*dry, "--allow-changes")
        result = migrating.run(*wet)
        again = migrating.run("-n", "mutated")

    assert [
        (
            "secrets: 3 objects: 1 would be changed by the cluster, nothing was "
            "written, 2 would be accepted, nothing was written"
        ),
        f"  mutated/s001: changed: {changed}",
    ] == first.stdout.splitlines()
    assert set(shown("The cluster changes objects")) <= set(first.stderr.splitlines())
    assert before == unwritten
    counts = json.loads(result.stdout)["resources"]["secrets"]
    assert [{"object": "mutated/s001", "reason": changed}] == counts["changes"]
    assert (1, 2) == (counts["changed"], counts["rewritten"])
    assert "hsm-kms: 1 object changed by the cluster\n" in result.stderr
    assert "secrets: 3 objects: 3 up to date already\n" == again.stdout
    codes = [each.returncode for each in (first, allowed, result, again)]
    assert [1, 0, 1, 0] == codes
    said = first.stdout + first.stderr + result.stdout + result.stderr
    assert CHANGED not in said
    assert base64.b64encode(CHANGED.encode()).decode() not in said


def test_changed_by_a_policy(migrating):
    """What a MutatingAdmissionPolicy changes is named, too."""
    dry = ("-n", "policed", "--dry-run")
    with created(migrating, *policy("policed")):
        wait_for(
            "the policy",
            lambda: "would be changed" in migrating.run(*dry).stdout,
            timeout=60,
        )
        result = migrating.run(*dry)

    changed = "  policed/s000: changed: metadata.labels[seen]\n"
    assert result.stdout.endswith(changed)
    assert 1 == result.returncode


def test_unreadable_objects(migrating):
    """Unreadable objects are named as far as possible, and all others re-encrypted.

    By default the API server names the key of what it cannot decrypt, and not of what
    it cannot decode. With unsafe deletion enabled, it names both, and the documented
    request deletes them.
    """
    api = migrating.world.api
    bad = dict.fromkeys(("s000", "s011", "s012"), BY_A_LOST_KEY) | {"s023": CUT}
    broken = {"s001": b"no object"}
    with damaged(migrating, "bad", bad), damaged(migrating, "broken", broken):
        api.restart(ready=False)  # a cache that breaks at runtime delays lists at first
        answers = [api.get(migrating.path("bad") + limit) for limit in KUBECTL_OR_NONE]
        inside = migrating.run("-n", "bad", *FAST)
        stored = migrating.stored("bad")
        everywhere = migrating.run(*FAST, "--dry-run")
        api.stop()
        api.start(migrating.world.encryption("v2"), UNSAFE, ready=False)
        named = migrating.run(*FAST, "--dry-run")
        for path in [*(f"bad/{name}" for name in bad), "broken/s001"]:
            url = migrating.path(*path.split("/"))
            api.kubectl("delete", f"--raw={url}?{IGNORED}")
        cured = migrating.run(*FAST, "--dry-run")
    api.stop()
    api.start(migrating.world.encryption("v2"))

    lines = inside.stdout.splitlines()
    unread = [f"  bad/{name}: no matching prefix found" for name in list(bad)[:3]]
    assert ["secrets: 24 objects: 20 rewritten, 4 unreadable", *unread] == lines[:4]
    assert lines[4].startswith("  bad/s023: proto:")
    ours = {"default/db": "bad/s000", "1 object ": "4 objects "}
    *by_list, by_us = shown("A list fails because of one object", ours)
    assert by_list == [json.loads(body)["message"] for _, body in answers]
    assert by_us in inside.stderr.splitlines()
    assert bad == {name: stored[name] for name in bad}
    others = [stored[name] for name in stored.keys() - bad]
    assert {True} == {value.startswith(prefix("v2")) for value in others}

    skipped = "secrets of namespace broken: skipped: cannot list secrets: HTTP 500\n"
    assert skipped in everywhere.stdout
    assert "; skipped: secrets of namespace broken\n" in everywhere.stderr
    every = sum(OBJECTS.values())
    assert f"secrets: {every - 2} objects: {every - 6} would be" in everywhere.stdout

    assert "5 unreadable\n" in named.stdout
    assert set(unread) <= set(named.stdout.splitlines())
    assert "  broken/s001: the API server cannot decode it\n" in named.stdout
    assert "unreadable" not in cured.stdout
    codes = [each.returncode for each in (inside, everywhere, named, cured)]
    assert [1, 1, 1, 0] == codes


def test_everything_but_what_is_broken(migrating, webhook, new_folder):
    """An aggregated API and a conversion webhook that are down are skipped, named."""
    api = migrating.world.api
    widget = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "w", "namespace": "every"},
    }
    everything = ("--resource", "*.*", "-n", "every", "--rate", "5000")
    with Webhook(new_folder() / "down") as down:
        crd = widgets(down)
    with created(migrating, *aggregated("metrics.example.com"), crd):
        path = "/apis/example.com/v1/namespaces/every/widgets"
        wait_for("widgets", lambda: api.get(path)[0] == 200, timeout=60)
        assert 201 == api.request("POST", path, widget)[0]

        result = migrating.run(*everything)
        named = migrating.run("--resource", "x.metrics.example.com")
        api.kubectl("replace", "-f", "-", stdin=json.dumps(widgets(webhook)).encode())
        cured = migrating.run("--resource", "widgets.example.com")

    failed = "conversion webhook for example.com/v1, Kind=Widget failed"
    cause = f"cannot list widgets.example.com: {failed}"
    assert f"widgets.example.com: skipped: {cause}\n" in result.stdout
    skipped = "hsm-kms: skipped: widgets.example.com"
    assert f"{skipped}\n" in result.stderr
    assert is_explained(skipped)
    elsewhere = "not migrated, because other API servers store them: *.metrics.example"
    assert elsewhere in result.stderr
    assert "secrets: 3 objects: 3 rewritten\n" in result.stdout
    assert "metrics.example.com is served by another API server" in named.stderr
    assert "widgets.example.com: 1 object: 1 up to date already" in cured.stdout
    assert [1, 1, 0] == [each.returncode for each in (result, named, cured)]


WRAPPERS = {
    "k3s kubectl": 'shift; exec {kubectl} "$@"',
    "microk8s.kubectl": '{kubectl} "$@"',  # kubectl is a child, not the process itself
}


@pytest.mark.parametrize("command", WRAPPERS)
def test_kubectl_in_a_wrapper(migrating, command, new_folder):
    """--kubectl takes a command; no kubectl is left behind, wrapped or not."""
    kubectl = migrating.world.binaries.kubectl
    script = new_folder() / command.split()[0]
    script.write_text(f"#!/bin/sh\n{WRAPPERS[command].format(kubectl=kubectl)}\n")
    script.chmod(0o700)
    wrapper = " ".join([str(script), *command.split()[1:]])

    result = migrating.run("-n", "wrapped", "--kubectl", wrapper)

    assert 0 == result.returncode, result.stderr
    assert "secrets: 1 object: 1 " in result.stdout
    wait_for("end of kubectl", lambda: not proxies(migrating.kubeconfig), timeout=30)


def proxies(kubeconfig):
    """Return the command lines of the kubectls that run for this kubeconfig."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    wanted = str(kubeconfig).encode()
    return [line for line in lines if b"\0proxy\0" in line and wanted in line]


def test_kubectl_with_a_tmp_of_its_own(migrating, new_folder, monkeypatch):
    """A snap's private /tmp is recognized, and with the TMPDIR of the hint it works."""
    shared = Path(tempfile.mkdtemp(prefix="hsm-kms-", dir="/var/tmp"))
    snap = new_folder() / "kubectl"
    inner = f"mount -t tmpfs tmpfs /tmp && exec {migrating.world.binaries.kubectl}"
    kubeconfig = shared / "kubeconfig"
    certificate = shared / "ca.crt"
    config = json.loads(migrating.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    certificate.write_bytes(Path(cluster["certificate-authority"]).read_bytes())
    cluster["certificate-authority"] = str(certificate)
    kubeconfig.write_text(json.dumps(config))
    snap.write_text(f'#!/bin/sh\nexec unshare -m sh -c \'{inner} "$@"\' sh "$@"\n')
    snap.chmod(0o700)
    if subprocess.run([snap, "version", "--client"], check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    options = ("-n", "wrapped", "--kubectl", str(snap))
    try:
        monkeypatch.setenv("TMPDIR", "/tmp")  # noqa: S108
        private = migrating.run(*options, kubeconfig=kubeconfig)
        monkeypatch.setenv("TMPDIR", str(shared))
        cured = migrating.run(*options, kubeconfig=kubeconfig)
    finally:
        shutil.rmtree(shared)

    assert set(shown("kubectl is a snap")) <= set(private.stderr.splitlines())
    assert "hint: set TMPDIR to a directory that kubectl can use too" in private.stderr
    assert 1 == private.returncode
    assert 0 == cured.returncode, cured.stderr


def test_expired_list_and_restarted_api_server(migrating):
    """A migration survives compaction of its list and a restart of the API server."""
    world = migrating.world
    with migrating.held("expiring", names(250)[5]) as webhook:
        process = migrating.start("-n", "expiring", *FAST)
        wait_for("the sixth write", webhook.asked.is_set, timeout=60)
        process.send_signal(signal.SIGSTOP)
        webhook.open.set()
        before = len(migrating.stale("expiring"))
        status = json.loads(world.etcd.ctl("endpoint", "status", "--write-out=json"))
        world.etcd.ctl("compact", str(status[0]["Status"]["header"]["revision"]))
        world.api.restart()
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=patient(120))
        _, metrics = world.api.get("/metrics")

    assert before > 100
    expired = [line for line in metrics.decode().splitlines() if 'code="410"' in line]
    assert any('resource="secrets"' in line for line in expired)
    assert 0 == process.returncode, err
    assert "secrets: 250 objects: " in out
    assert set() == migrating.stale("expiring")
