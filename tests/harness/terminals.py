"""Run a line as a person types it: in this process, or in a shell."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

from tests.harness import command_line
from tests.harness.command_line import HSM_KMS
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Commands that read no configuration do not take the option.
_PROGRAM = """#!/bin/sh
case "$*" in
"etcd scan"*|"etcd show"*|migrate*|--version) exec {program} "$@" ;;
*--config*|*--socket*) exec {program} "$@" ;;
*) exec {program} "$@" --config "$HSM_KMS_CONFIG" ;;
esac
"""
_KEPT = re.compile(r"export |[\w-]+\(\) \{")  # variables and functions
# A line that is drawn again and again; and the lines of a migration of over 10 s.
_PROGRESS = re.compile(
    r"\r[^\n]*\n|^(\S+: ([\d,]+ of )?)?[\d,]+ objects(, | in \d)[^\n]*\n", re.MULTILINE
)


class InProcess:
    """Run `hsm-kms` without a shell in the process of the test.

    Args:
        config: The configuration, which the page's commands find in /etc; None for
            those that name it.
        cwd: The working directory; this process's if None.
    """

    def __init__(self, config: Path | None, cwd: Path | None = None) -> None:
        self._more = [] if config is None else ["--config", str(config)]
        self._cwd = cwd

    def run(self, command: str, *, typed: str, after: str) -> tuple[int, str]:
        """Run a command whose first word is the program."""
        assert not typed + after
        _, *arguments = shlex.split(command)
        ended = command_line.run(*arguments, *self._more, cwd=self._cwd, merged=True)
        return ended.returncode, _by_default(ended.stdout, *self._more[1:])


class Shell:
    """Run commands in bash.

    Args:
        folder: The working directory.
        config: The configuration of `hsm-kms`.
        path: Folders of programs, which come before those of PATH.
        env: More of the environment.
        inside: What comes before bash, to run the commands elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        path: list[Path],
        env: Mapping[str, str],
        inside: Sequence[str] = (),
    ) -> None:
        bin_folder = folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        program = bin_folder / "hsm-kms"
        program.write_text(_PROGRAM.format(program=shlex.join(HSM_KMS)))
        program.chmod(0o755)
        self.env = {
            **{n: v for n, v in os.environ.items() if not n.startswith("ETCDCTL_")},
            "HOME": str(folder),
            "HSM_KMS_CONFIG": str(config),
            "LC_ALL": "C.UTF-8",
            "PATH": os.pathsep.join(
                [*map(str, path), str(bin_folder), os.environ["PATH"]]
            ),
            **env,
        }
        self._folder = folder
        # Whoever enters another mount namespace is in its root.
        self._before = f"cd {shlex.quote(str(folder))}\n" if inside else ""
        self._inside = inside

    def run(self, command: str, *, typed: str, after: str) -> tuple[int, str]:
        """Run a command; variables and functions are there for the following ones.

        What is typed is typed on a terminal, when the text before it has been printed.
        The progress is left out, which depends on the time.
        """
        if _KEPT.match(command):
            self._before += command + "\n"
            return 0, ""
        line = [*self._inside, "bash", "-c", self._before + command]
        if typed:
            return self._on_terminal(line, typed, after)
        ended = subprocess.run(
            line,
            cwd=self._folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=patient(300),
        )
        printed = _by_default(ended.stdout, self.env["HSM_KMS_CONFIG"])
        return ended.returncode, _PROGRESS.sub("", printed)

    def _on_terminal(self, line: list[str], typed: str, after: str) -> tuple[int, str]:
        outer, inner = pty.openpty()
        with subprocess.Popen(
            ["setsid", "--ctty", *line],
            cwd=self._folder,
            env=self.env,
            stdin=inner,
            stdout=inner,
            stderr=inner,
        ) as process:
            os.close(inner)
            printed, answer = b"", typed.encode()
            while True:
                if answer and after.encode() in printed:
                    os.write(outer, answer)
                    answer = b""
                if not (part := _read(outer)):
                    break
                printed += part
        os.close(outer)
        text = printed.decode().replace("\r\n", "\n")
        text = _by_default(text, self.env["HSM_KMS_CONFIG"])
        return process.returncode, _PROGRESS.sub("", text)


def read_all(terminal: int) -> str:
    """Return what a terminal shows until its other end is closed, and close it."""
    printed = b""
    while part := _read(terminal):
        printed += part
    os.close(terminal)
    return printed.decode()


def _by_default(printed: str, config: str = "") -> str:
    """Return what a command prints without the option that a page does not show."""
    return printed.replace(f" --config {config}`", "`") if config else printed


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1000)
    except OSError:  # nobody has the other end open
        return b""
