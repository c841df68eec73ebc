"""Fork `hsm-kms` from a process that has imported it already.

Imports are two thirds of what the start of a server costs, and more of what a command
costs, and the tests start hundreds. The product itself never forks; a test for which
the process is the point (its arguments, its environment, its hardening) has it spawned.

This file is two programs. The tests import it for `start`. The interpreter under test,
`command_line.PYTHON`, runs it as a script, so it imports nothing of `tests` before it
knows who it is.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_REQUEST_BYTES: Final = 200_000  # a whole environment


class Forked:
    """A process that the fork server started, with the methods of `Popen` used here.

    Attributes:
        pid: Its process id.
        returncode: As `Popen.returncode`; None while it runs.
    """

    def __init__(self, pid: int, report: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._report = report

    def poll(self) -> int | None:
        """Return how it ended, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its code.

        Raises:
            subprocess.TimeoutExpired: It still runs after `timeout` seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"fork of {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ready, _, _ = select.select([self._report], [], [], timeout)
            if ready:
                self.returncode = self._read_report()
        return self.returncode

    def _read_report(self) -> int:
        status = os.read(self._report, 16)
        os.close(self._report)
        assert status, "the fork server is gone"
        return os.waitstatus_to_exitcode(int(status))


class _ForkServer:
    """The tests' side of the process that forks."""

    def __init__(self, python: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [python, "-P", str(Path(__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(self, arguments: Sequence[str], streams: Sequence[int]) -> Forked:
        """Fork `hsm-kms ARGUMENT...` with these standard streams."""
        umask = os.umask(0)
        os.umask(umask)
        request = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "directory": str(Path.cwd()),
            "umask": umask,
        }
        ours, theirs = os.pipe()
        try:
            socket.send_fds(
                self._socket, [json.dumps(request).encode()], [*streams, theirs]
            )
        finally:
            os.close(theirs)
        return Forked(int(self._socket.recv(16)), ours)

    def close(self) -> None:
        """Let it end, and wait for that: it is reaped with all that it reaped."""
        self._socket.close()
        self._process.wait()


_fork_servers: dict[str, _ForkServer] = {}


def start(python: str, arguments: Sequence[str], streams: Sequence[int]) -> Forked:
    """Start `hsm-kms` as a fork of an interpreter that has imported it.

    Args:
        python: The interpreter; the first call for it starts its fork server.
        arguments: The command and its options.
        streams: Descriptors for stdin, stdout and stderr.
    """
    if python not in _fork_servers:
        _fork_servers[python] = _ForkServer(python)
    return _fork_servers[python].start(arguments, streams)


def close() -> None:
    """End the fork servers; what they forked runs on."""
    while _fork_servers:
        _fork_servers.popitem()[1].close()


# From here on: the process that forks.


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return it in the child, None once the tests are gone."""
    children: dict[int, int] = {}
    waker, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests.fileno(), waker], [], [])
        if waker in ready:
            os.read(waker, 4096)
            _report(children)
        if requests.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 4)
        if not message:
            return None
        *streams, report = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for each in (waker, wake, report, *children.values()):
                os.close(each)
            requests.close()
            return {**json.loads(message), "streams": streams}
        for each in streams:
            os.close(each)
        children[pid] = report
        requests.send(str(pid).encode())


def _report(children: dict[int, int]) -> None:
    """Reap what has ended, and tell how."""
    for pid in list(children):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            report = children.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody wants to know
                os.write(report, str(status).encode())
            os.close(report)


def _become(request: dict[str, Any]) -> None:
    """Make this fork what a spawned process would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
    for stream in request["streams"]:
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    os.umask(request["umask"])
    sys.argv = ["hsm-kms", *request["arguments"]]


def _import_all(group: Any) -> None:
    """Import every command of a group, and of the groups in it."""
    for command in getattr(group, "commands", {}).values():
        _import_all(command)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' end is this one's
    from hsm_kms.cli import cli, serve  # noqa: F401, PLC0415
    from hsm_kms.server import serve as server  # noqa: F401, PLC0415
    from hsm_kms.start import main  # noqa: PLC0415

    _import_all(cli)
    # Imported, and no gRPC object made: its threads would not survive a fork.
    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        _become(request)
        main()


if __name__ == "__main__":
    _main()
