"""Run `hsm-kms etcd` in this process, and make a file for it to read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.harness import command_line
from tests.harness.command_line import HSM_KMS, Ended
from tests.harness.etcd_samples import v1, v2

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

IN_CLEAR = b"k8s\0\n\x0c hunter2"
OBJECTS = {
    "/registry/secrets/default/a": v2(),
    "/registry/secrets/default/b": v2(),
    "/registry/secrets/default/c": v1(),
    "/registry/configmaps/default/d": v2(b"foreign", "aws", key_id="arn:1"),
    "/registry/pods/default/e": IN_CLEAR,
    "/registry/leases/kube-system/f": IN_CLEAR,
    "/registry/example.com/widgets/g": IN_CLEAR,
}
COMMAND = [*HSM_KMS, "etcd"]


class EtcdCli:
    """Run commands of `hsm-kms etcd` in this process, without ETCDCTL_* variables."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
            monkeypatch.delenv(name)

    def run(
        self, *arguments: object, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> Ended:
        """Run a command."""
        result = command_line.run("etcd", *arguments, env=env, stdin=stdin)
        return Ended.of(result)

    def scan(self, path: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Scan a file, and return stdout and stderr."""
        done = self.run("scan", "--from-json", path, *arguments)
        assert code == done.code, done
        return done.out, done.err

    def show(self, *arguments: object, code: int = 0, stdin: bytes = b"") -> str:
        """Show a value, and return stdout, or else stderr."""
        done = self.run("show", *arguments, stdin=stdin)
        assert code == done.code, done
        return done.out or done.err
