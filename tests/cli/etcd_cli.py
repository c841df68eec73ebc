"""`hsm-kms etcd` run in this process, and a file for it to read."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsm_kms.cli import main
from tests.harness.command_line import HSM_KMS
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


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


class EtcdCli:
    """Runs commands of `hsm-kms etcd` in this process; none of ETCDCTL_* is set."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        folder: Path,
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._stdin = folder / "stdin"
        for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
            monkeypatch.delenv(name)

    def run(
        self, *arguments: object, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> Done:
        """Run one."""
        for name, value in (env or {}).items():
            self._monkeypatch.setenv(name, value)
        self._stdin.write_bytes(stdin)
        argv = ["hsm-kms", "etcd", *map(str, arguments)]
        self._monkeypatch.setattr(sys, "argv", argv)
        code = 0
        with self._stdin.open() as file:
            self._monkeypatch.setattr(sys, "stdin", file)
            try:
                main()
            except SystemExit as end:
                code = end.code
        return Done(code, *self._capsys.readouterr())

    def scan(self, path: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Scan a file; what came on stdout and stderr."""
        done = self.run("scan", "--from-json", path, *arguments)
        assert code == done.code, done
        return done.out, done.err

    def show(self, *arguments: object, code: int = 0, stdin: bytes = b"") -> str:
        """Show a value; what came on stdout, or else on stderr."""
        done = self.run("show", *arguments, stdin=stdin)
        assert code == done.code, done
        return done.out or done.err
