"""`hsm-kms etcd` on kine, with which k3s keeps its objects in SQLite."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from hsm_kms.etcd.live import Etcd
from tests.harness.pages import walk
from tests.harness.terminals import InProcess
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient
from tests.system.e2e.processes import Child, wait_for
from tests.system.e2e.secure_etcd import complaint, hsm_kms, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

OBJECTS = 40  # more than the first page
KEY = "/registry/secrets/n/{:05}"


class Kine:
    """A kine on a unix socket, its database below `folder`."""

    def __init__(self, folder: Path, program: Path, etcdctl: Path) -> None:
        self.database = folder / "state.db"
        self.endpoint = f"unix://{folder / 'kine.sock'}"
        self._etcdctl = etcdctl
        self.child = Child(
            [
                *(program, "--endpoint", f"sqlite://{self.database}"),
                *("--listen-address", self.endpoint, "--metrics-bind-address", "0"),
            ],
            log=folder / "kine.log",
        )
        wait_for("answer of kine", self._answers, timeout=60)

    def _answers(self) -> bool:
        self.child.check()
        return self.ctl("endpoint", "status").returncode == 0

    def ctl(self, *args: str, text: str = "") -> subprocess.CompletedProcess[bytes]:
        """Run etcdctl."""
        return subprocess.run(
            [self._etcdctl, "--endpoints", self.endpoint, *args],
            input=text.encode(),
            capture_output=True,
            check=False,
            timeout=patient(60),
        )

    def _transact(self, revision: int, change: str, key: str) -> None:
        """Change a key in the only form that kine takes, that of the API server."""
        text = f'mod("{key}") = "{revision}"\n\n{change}\n\nget {key}\n\n'
        done = self.ctl("txn", text=text)
        assert done.stdout.startswith(b"SUCCESS"), done

    def create(self, key: str, value: str) -> None:
        self._transact(0, f'put {key} "{value}"', key)

    def delete(self, key: str) -> None:
        found: dict[str, Any] = json.loads(self.ctl("get", key, "-w", "json").stdout)
        self._transact(found["kvs"][0]["mod_revision"], f"del {key}", key)


@pytest.fixture(scope="module")
def kine(
    binaries: Binaries, kine_program: Path, new_folder: Callable[[], Path]
) -> Iterator[Kine]:
    """A kine with some objects."""
    running = Kine(new_folder(), kine_program, binaries.etcdctl)
    try:
        for number in range(OBJECTS):
            running.create(KEY.format(number), "k8s:enc:kms:v9:x:")
        yield running
    finally:
        running.child.stop()


def test_a_scan_of_kine(kine):
    """A scan counts every object of every page, whatever the prefix."""
    counts = {
        prefix: [
            row["objects"]
            for row in scan("--endpoints", kine.endpoint, "--prefix", prefix)["rows"]
            if row["resource"] == "secrets"
        ]
        for prefix in ("/registry/", "/registry/secrets/", "")
    }
    shown = hsm_kms("etcd", "show", "secrets/n/00001", "--endpoints", kine.endpoint)
    found = kine.database.with_suffix(".json")
    found.write_bytes(kine.ctl("get", "/", "--prefix", "-w", "json").stdout)

    assert {prefix: [OBJECTS] for prefix in counts} == counts
    assert "name: kms:v9" in shown.stdout
    assert scan("--from-json", found)["objects"] == OBJECTS + 1  # and kine's own


def test_page(kine):
    """The command of docs/etcd.md scans a kine."""
    endpoint = "unix:///var/lib/rancher/k3s/server/kine.sock"
    with walk(
        InProcess(None),
        "docs/etcd.md",
        "Count: `hsm-kms etcd scan` (5)",
        names={endpoint: kine.endpoint},
    ) as page:
        assert f"in {kine.endpoint}" in page.run("hsm-kms etcd scan")


def test_writes_during_a_scan_of_kine(kine):
    """A scan shows one revision, also if objects are written and deleted meanwhile."""
    kine.create(KEY.format(900), "gone during the first scan")
    with Etcd([kine.endpoint], prefix=b"/registry/secrets/") as source:
        items = iter(source)
        seen = [next(items)]
        kine.create(KEY.format(901), "new")
        kine.delete(KEY.format(900))
        seen += items
    with Etcd([kine.endpoint], prefix=b"/registry/secrets/") as source:
        later = {item.key for item in source}
    kine.delete(KEY.format(901))

    assert OBJECTS + 1 == len(seen) == source.total()
    assert KEY.format(900).encode() in {item.key for item in seen}
    assert KEY.format(901).encode() not in {item.key for item in seen}
    assert KEY.format(900).encode() not in later
    assert KEY.format(901).encode() in later


def test_the_database_of_kine(kine, binaries, monkeypatch):
    """The file of SQLite is no snapshot, and the error says what to scan instead."""
    monkeypatch.setenv("PATH", str(binaries.etcd.parent), prepend=os.pathsep)
    said = complaint("--from-snapshot", kine.database)

    line = f"{kine.database} is a database of SQLite, as kine of k3s has it"
    assert line in said
    assert is_explained(f"hsm-kms: {line}", {str(kine.database): "/path/state.db"})
    assert "hint: scan the running kine instead: --endpoints unix://PATH" in said
