"""Snapshots of a real etcd, restored for the time of a command; users of etcd."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.processes import alive
from tests.harness.wait import patient
from tests.system.e2e.page import shown
from tests.system.e2e.processes import TIED, wait_for
from tests.system.e2e.secure_etcd import SecureEtcd, complaint, hsm_kms, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

OBJECTS = {f"/registry/secrets/n/{n:05}": "k8s:enc:kms:v9:x:" for n in range(500)}


@pytest.fixture(scope="module")
def etcd(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[SecureEtcd]:
    """An etcd with some objects."""
    running = SecureEtcd(binaries, new_folder())
    try:
        running.put(OBJECTS)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def snapshot(etcd: SecureEtcd, new_folder: Callable[[], Path]) -> Path:
    """A snapshot of it."""
    path = new_folder() / "snapshot.db"
    etcd.ctl("snapshot", "save", path)
    return path


@pytest.fixture
def tools(binaries: Binaries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put etcd and etcdutl in PATH."""
    folders = {str(binaries.etcd.parent), str(binaries.etcdutl.parent)}
    monkeypatch.setenv("PATH", os.pathsep.join([*folders, os.environ["PATH"]]))


def test_a_snapshot(snapshot, tools, etcd, new_folder, monkeypatch):
    """A scan of a snapshot counts like one of its etcd, and leaves no files."""
    folder = new_folder()
    monkeypatch.setenv("TMPDIR", str(folder))
    env = {"ETCD_LISTEN_CLIENT_URLS": "http://127.0.0.1:1", "ETCD_NAME": "other"}
    told = scan("--from-snapshot", snapshot, env=env)
    explained = hsm_kms(
        *("etcd", "show", "secrets/n/00001", "--from-snapshot", snapshot)
    ).stdout

    assert scan(*etcd.options)["rows"] == told["rows"]
    assert str(snapshot) == told["source"]
    assert "provider: unknown\nname: kms:v9" in explained
    assert [] == list(folder.iterdir())


ENDINGS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]


HOLDING = """
import sys, time
from pathlib import Path
from hsm_kms.etcd.snapshot import Snapshot
with Snapshot(Path(sys.argv[1])) as source:
    print(source.total(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ENDINGS)
def test_a_snapshot_interrupted(end, snapshot, tools, new_folder, monkeypatch):
    """An interrupted command leaves no etcd running, and files only after SIGKILL."""
    folder = new_folder()
    monkeypatch.setenv("TMPDIR", str(folder))
    process = subprocess.Popen(
        [*TIED, sys.executable, "-c", HOLDING, str(snapshot)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (server,) = map(int, children.read_text().split())
    process.send_signal(end)
    process.wait(patient(60))
    process.stdout.close()

    wait_for("end of etcd", lambda: not alive(server), timeout=60)
    assert (end is signal.SIGKILL) == any(folder.iterdir())


def test_what_is_no_snapshot(snapshot, tools, new_folder):
    """A truncated or missing snapshot is refused."""
    cut = new_folder() / "cut.db"
    whole = snapshot.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])

    text = cut.with_suffix(".txt")
    text.write_text("no database")

    said = complaint("--from-snapshot", cut)
    assert f"{cut} has no hash: it is a copied database, or is truncated" in said
    said = complaint("--from-snapshot", text)
    assert f"hsm-kms: {text} is not a database of etcd\n" in said
    assert "the file /nowhere.db does not exist" in complaint(
        "--from-snapshot", "/nowhere.db"
    )


def test_a_copied_database(snapshot, tools, etcd, new_folder):
    """A copy of member/snap/db is read with the option that the error names."""
    copied = new_folder() / "db"
    shutil.copy(etcd.database, copied)
    directory = etcd.database.parents[2]

    without = complaint("--from-snapshot", copied)
    whole = complaint("--from-snapshot", directory)
    with_it = scan("--from-snapshot", copied, "--skip-hash-check")
    saved = scan("--from-snapshot", snapshot, "--skip-hash-check")

    assert shown("No hash", {" db ": f" {copied} "})[0] in without.splitlines()
    assert (
        "hint: give --skip-hash-check if it was copied from member/snap/db" in without
    )
    assert f"hsm-kms: {directory} is a directory\n" in whole
    assert f"hint: give a copy of {etcd.database} and --skip-hash-check" in whole
    assert len(OBJECTS) == with_it["objects"] == saved["objects"]


def test_compressed_snapshots(snapshot, tools, new_folder, monkeypatch):
    """Snapshots in gzip and zip files are read, and other files are recognized."""
    folder, temporary = new_folder(), new_folder()
    monkeypatch.setenv("TMPDIR", str(temporary))
    gz, zipped, two, cut, tar, zstd, tgz = (
        folder / f"s.{end}"
        for end in ("gz", "zip", "2.zip", "cut", "tar", "zst", "tgz")
    )
    data = snapshot.read_bytes()
    gz.write_bytes(gzip.compress(data))
    cut.write_bytes(gz.read_bytes()[:-100])
    for path, names in ((zipped, ["etcd-snapshot-node-1"]), (two, ["a", "b"])):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, data)
    with tarfile.open(tar, "w") as archive:
        archive.add(snapshot)
    tgz.write_bytes(gzip.compress(tar.read_bytes()))
    zstd.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))

    opened = [scan("--from-snapshot", path)["objects"] for path in (gz, zipped)]
    said = {path: complaint("--from-snapshot", path) for path in (two, cut, tar, tgz)}
    said[zstd] = complaint("--from-snapshot", zstd)

    assert [len(OBJECTS)] * 2 == opened
    expected = {
        two: "is a zip file with 2 files",
        cut: "is damaged: it cannot be decompressed",
        tar: "is a tar archive",
        tgz: "is a tar archive",
        zstd: "is compressed with zstd",
    }
    for path, cause in expected.items():
        assert f"hsm-kms: {path} {cause}\n" in said[path]
    assert [] == list(temporary.iterdir())


def test_users(binaries, new_folder, tools):
    """Users log in by password or certificate; a snapshot keeps users and rights."""
    etcd = SecureEtcd(binaries, new_folder(), user="scanner")
    try:
        etcd.put({"/registry/secrets/n/a": "k8s:enc:x", "/registry/pods/n/a": "p"})
        for name in ("root", "scanner", "narrow"):
            etcd.ctl("user", "add", f"{name}:{name}-password")
            etcd.ctl("role", "add", name)
            etcd.ctl("user", "grant-role", name, name)
        etcd.ctl(
            *("role", "grant-permission", "scanner", "--prefix", "read"), "/registry/"
        )
        etcd.ctl(
            *("role", "grant-permission", "narrow", "--prefix", "read"),
            "/registry/pods/",
        )
        etcd.ctl("auth", "enable")

        by_certificate = scan(*etcd.options)["objects"]
        by_password = scan(*etcd.options, "--user", "root:root-password")["objects"]
        narrow = complaint(*etcd.options, "--user", "narrow:narrow-password")
        wrong = complaint(*etcd.options, "--user", "root:wrong")
        path = new_folder() / "users.db"
        etcd.ctl("--user", "root:root-password", "snapshot", "save", path)
    finally:
        etcd.stop()
    nobody = complaint("--from-snapshot", path)
    restored = scan("--from-snapshot", path, "--user", "root:root-password")

    assert 2 == by_certificate == by_password == restored["objects"]
    assert (
        "permission denied: the etcd user cannot read all keys below the prefix"
        in narrow
    )
    assert "etcd rejected the user or the password" in wrong
    assert "etcd requires a user" in nobody
