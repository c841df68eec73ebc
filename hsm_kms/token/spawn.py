"""Exec a worker process, with a socket pair for each session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from hsm_kms.another_python import python_command
from hsm_kms.errors import WorkerLostError
from hsm_kms.token.kill import Killer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# Who has these can tell systemd that the server is ready, alive or another process.
_FOR_SERVER_ALONE: Final = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}


class Spawned(NamedTuple):
    """Hold a worker process, and what the server has to do with it.

    Args:
        process: The process.
        pairs: The server's ends of the control pair and of the sessions' pairs.
        stderr: Descriptor of the pipe that is the worker's stderr.
        killer: Kills the process.
    """

    process: asyncio.subprocess.Process
    pairs: Sequence[socket.socket]
    stderr: int
    killer: Killer


async def spawn(
    sessions: int, env: Mapping[str, str], pass_fds: Sequence[int]
) -> Spawned:
    """Exec a worker with a control pair and `sessions` more pairs.

    Args:
        sessions: Number of session channels.
        env: Added to this process's environment, for the vendor's module.
        pass_fds: More descriptors that the worker inherits.

    Raises:
        WorkerLostError: The machine has no process or descriptor left.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        try:
            stderr, their_stderr = os.pipe()
            ours.callback(os.close, stderr)
            theirs.callback(os.close, their_stderr)
            pairs = [_pair(ours, theirs) for _ in range(1 + sessions)]
            numbers = [other.fileno() for _, other in pairs]
            # From the main thread: the parent-death signal comes when the thread
            # ends that started the process.
            process = await asyncio.create_subprocess_exec(
                *python_command(
                    "hsm_kms.worker.__main__", *map(str, (os.getpid(), *numbers))
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=their_stderr,
                pass_fds=[*numbers, *pass_fds],
                env=_environment(env),
                # Ctrl-C is for the server, which then stops its workers; and a module
                # must not ask a terminal for anything.
                start_new_session=True,
            )
            # If this fails, the worker sees its pairs close and exits.
            killer = Killer(process)
        except OSError as error:
            raise WorkerLostError(
                f"a token worker cannot be started by {sys.executable or 'Python'}: "
                f"{error.strerror}",
                hint=_cure(error),
            ) from None
        ours.pop_all()
    return Spawned(process, [mine for mine, _ in pairs], stderr, killer)


def _cure(error: OSError) -> str | None:
    """Name the file behind a virtual environment's link, if it may not be run."""
    if not isinstance(error, PermissionError):
        return None
    return (
        f"let user {os.geteuid()} run {os.path.realpath(sys.executable)}, or install "
        "hsm-kms with a Python outside of other users' home directories"
    )


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    mine = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOR_SERVER_ALONE
    }
    return {**mine, **env}


def _pair(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.enter_context(mine), theirs.enter_context(other)
