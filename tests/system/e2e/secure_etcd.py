"""A real etcd that wants client certificates, and etcdctl beside it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

from tests.harness.command_line import HSM_KMS
from tests.harness.etcd_server import make_certificates
from tests.harness.wait import patient
from tests.system.e2e.processes import Child, awaited, free_ports, started

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

TIMEOUT = patient(60.0)  # seconds
TXN_OPERATIONS = 100  # etcd takes 128
TXN_BYTES = 1024**2


class SecureEtcd:
    """One etcd with TLS both ways, its data below `folder`.

    Args:
        binaries: The programs.
        folder: For data, certificates and logs.
        user: CN of the client's certificate.
    """

    def __init__(self, binaries: Binaries, folder: Path, user: str = "root") -> None:
        self._binaries = binaries
        self.pki = make_certificates(folder / "pki", user)
        self.database = folder / "etcd" / "member" / "snap" / "db"
        self._folder = folder
        [self._child] = started(self._try_start)

    def _try_start(self) -> list[Child]:
        client, peer = free_ports(2)
        self.endpoint = f"127.0.0.1:{client}"
        urls = f"https://{self.endpoint}"
        self.options = [
            *("--endpoints", self.endpoint, "--cacert", str(self.pki.ca)),
            *("--cert", str(self.pki.client), "--key", str(self.pki.client_key)),
        ]
        child = Child(
            [
                *(self._binaries.etcd, "--data-dir", self._folder / "etcd"),
                *("--listen-client-urls", urls, "--advertise-client-urls", urls),
                *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
                *("--cert-file", self.pki.server, "--key-file", self.pki.server_key),
                *("--client-cert-auth", "--trusted-ca-file", self.pki.ca),
                *("--unsafe-no-fsync", "--log-level=warn"),
            ],
            log=self._folder / "etcd.log",
        )

        def healthy() -> bool:
            child.check()
            return self.ctl("endpoint", "health", check=False).returncode == 0

        return awaited("etcd", [child], healthy)

    def ctl(
        self, *args: object, stdin: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run etcdctl with the client's certificate."""
        return subprocess.run(
            [self._binaries.etcdctl, *self.options, *map(str, args)],
            input=stdin,
            capture_output=True,
            check=check,
            timeout=TIMEOUT,
        )

    def put(self, objects: Mapping[str, str]) -> None:
        """Store these, many in a transaction."""
        lines: list[str] = []
        size = 0
        for key, value in objects.items():
            if len(lines) == TXN_OPERATIONS or size + len(value) > TXN_BYTES:
                self._transact(lines)
                lines, size = [], 0
            lines.append(f'put {key} "{value}"')
            size += len(value)
        self._transact(lines)

    def _transact(self, lines: list[str]) -> None:
        # No comparison, then what succeeds, then what fails.
        text = "\n".join(["", *lines, "", "", ""])
        self.ctl("txn", stdin=text.encode())

    def stop(self) -> None:
        """Stop it."""
        self._child.stop()


def hsm_kms(
    *args: object, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [*HSM_KMS, *map(str, args)],
        env=os.environ | (env or {}),
        check=check,
        capture_output=True,
        text=True,
        timeout=patient(120),
    )


def scan(*args: object, env: dict[str, str] | None = None) -> dict:
    """Scan, and return what it tells as JSON."""
    return json.loads(hsm_kms("etcd", "scan", *args, "-o", "json", env=env).stdout)


def complaint(*args: object) -> str:
    """Scan, which must fail, and return what it says."""
    done = hsm_kms("etcd", "scan", *args, check=False)
    assert (1, "") == (done.returncode, done.stdout)
    return done.stderr
