"""`hsm-kms` commands, run in the process of the test, which is not hardened.

A process of their own costs most commands more than all that they do. Spawn one where
the process is the point: signals, terminals, hardening, what its streams are.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, NamedTuple, TextIO

import structlog

from hsm_kms.cli import main
from tests.harness import fork_server
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A process of its own runs the package of this interpreter: the checkout, unless CI
# names the environment that it installed the built wheel in. With -P the working
# directory, which is the checkout, does not come before that.
PYTHON = os.environ.get("HSM_KMS_PYTHON") or sys.executable
HSM_KMS = (PYTHON, "-P", "-m", "hsm_kms")


class Ended(NamedTuple):
    """How a command ended, for tests that read it often."""

    code: int
    out: str
    err: str

    @classmethod
    def of(cls, result: CompletedProcess[str]) -> Ended:
        """Take over what `run` or `subprocess.run` returned."""
        return cls(result.returncode, result.stdout, result.stderr)


def run(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    stdout: TextIO | None = None,
    encoding: str = "utf-8",
    merged: bool = False,
) -> CompletedProcess[str]:
    """Run `hsm-kms ARGUMENT...`, and return its exit code and what it wrote.

    An exception that the command line does not handle reaches the test. Call this
    where no event loop runs; the commands start one of their own.

    Args:
        arguments: The command and its options.
        env: Environment variables that are set meanwhile.
        stdin: What the command can read; it is not a terminal.
        cwd: The working directory; this process's if None.
        stdout: A stream instead of the one whose text is returned.
        encoding: Encoding of stdout and stderr.
        merged: Return both as stdout, in the order in which they were written.
    """
    argv = ["hsm-kms", *map(str, arguments)]
    out = _stream(encoding)
    err = out if merged else _stream(encoding)
    source = stdin.encode() if isinstance(stdin, str) else stdin
    with _as_a_process(argv, env or {}, cwd), contextlib.ExitStack() as streams:
        streams.enter_context(contextlib.redirect_stdout(stdout or out))
        streams.enter_context(contextlib.redirect_stderr(err))
        streams.enter_context(_stdin(source))
        code = _exit_code()
    return CompletedProcess(argv, code, _text(out), "" if merged else _text(err))


def run_fork(*arguments: object, stdin: str = "") -> CompletedProcess[str]:
    """Run `hsm-kms ARGUMENT...` in a fork of `PYTHON`, and return how it ended.

    Args:
        arguments: The command and its options.
        stdin: What the command can read; it is not a terminal.
    """
    argv = list(map(str, arguments))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin.encode())
        files[0].seek(0)
        forked = fork_server.start(PYTHON, argv, [each.fileno() for each in files])
        code = forked.wait(patient(60))
        texts = []
        for file in files[1:]:
            file.seek(0)
            texts.append(file.read().decode())
    return CompletedProcess(["hsm-kms", *argv], code, *texts)


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextlib.contextmanager
def _as_a_process(
    argv: list[str], env: Mapping[str, str], cwd: Path | None
) -> Iterator[None]:
    """Undo what a command changes in its process, which would otherwise end."""
    before = sys.argv, os.environ.copy()
    configured = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    sys.argv = argv
    os.environ.update(env)
    try:
        with contextlib.chdir(cwd or Path.cwd()):
            yield
    finally:
        sys.argv, environ = before
        os.environ.clear()
        os.environ.update(environ)
        structlog.configure(**configured)
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def _stdin(source: bytes) -> Iterator[None]:
    before = sys.stdin
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the wrapper closes it
    file.write(source)
    file.seek(0)
    with io.TextIOWrapper(file, "utf-8") as text:  # it may be asked for its number
        sys.stdin = text
        try:
            yield
        finally:
            sys.stdin = before


def _stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    data = stream.buffer
    assert isinstance(data, io.BytesIO)
    return data.getvalue().decode(stream.encoding)
