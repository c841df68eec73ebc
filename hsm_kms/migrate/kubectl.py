"""Run the user's own kubectl as a proxy that only this process can reach.

kubectl logs in once, in the way that the kubeconfig says (certificates, tokens, exec
plugins, impersonation, proxies), and keeps its connection to the API server. This
process sends plain HTTP to the proxy over a socket in a private directory. One kubectl
per object would take thirty times as long and log in each time.

1.  The directory has mode 0700, because anyone who reaches the socket has the user's
    rights.
2.  The proxy forwards GET and PUT below /api and /apis, and nothing else; or, to drive
    a StorageVersionMigration, GET of what is served, and GET and POST of these.
3.  The proxy ends with this process, even if this process is killed. (If the program
    is a wrapper that starts kubectl as a child, a SIGKILL ends the wrapper only.)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.another_python import python_command
from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable
from hsm_kms.interrupts import raising_when_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 3.0
_MAX_TEXT_CHARS: Final = 300

REWRITING: Final = (
    "--accept-paths=^/apis?(/.*)?$",
    "--reject-methods=^POST$,^PATCH$,^DELETE$,^HEAD$,^OPTIONS$",
)
"""Flags of a proxy with which objects are read and sent back."""

_SERVED: Final = "^/api(/v1)?$,^/apis(/[^/]+)?(/[^/]+)?$"
MIGRATING: Final = (
    rf"--accept-paths={_SERVED},^/apis/storagemigration\.k8s\.io/",
    "--reject-methods=^PUT$,^PATCH$,^DELETE$,^HEAD$,^OPTIONS$",
)
"""Flags of a proxy with which StorageVersionMigrations are created and watched."""

_NOWHERE: Final = "current-context must exist in order to minify"
"""Message of kubectl if there is no kubeconfig, as in a pod."""

_PEER: Final = struct.Struct("3i")  # process, user and group of SO_PEERCRED
_SEEN: Final = "seen-by-kubectl"


class KubectlError(HsmKmsError):
    """Raised when kubectl cannot be used, or has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """Say which kubectl to run, and for which cluster.

    Args:
        program: Path of kubectl, or a name to find in PATH; or a command such as
            "k3s kubectl".
        kubeconfig: Value of kubectl's --kubeconfig, or None.
        context: Value of kubectl's --context, or None.
    """

    program: str = "kubectl"
    kubeconfig: Path | None = None
    context: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a kubectl command.

        Raises:
            KubectlError: The program does not exist.
        """
        program, *words = self._words()
        found = shutil.which(program)
        if found is None:
            raise KubectlError(
                f"the program {program!r} was not found",
                hint="install kubectl, or give its path with --kubectl; or a command, "
                "such as --kubectl 'k3s kubectl'",
            )
        options = []
        if self.kubeconfig is not None:
            options.append(f"--kubeconfig={self.kubeconfig}")
        if self.context is not None:
            options.append(f"--context={self.context}")
        return [str(Path(found).absolute()), *words, *options, *arguments]

    def _words(self) -> list[str]:
        """Return the program and the arguments that come first.

        Raises:
            KubectlError: The program is not a valid command.
        """
        if shutil.which(self.program):  # a path may contain blanks
            return [self.program]
        try:
            return shlex.split(self.program) or [self.program]
        except ValueError as error:
            raise KubectlError(
                f"--kubectl: {self.program!r} is not a command: {str(error).lower()}"
            ) from None

    def server(self) -> str:
        """Return the URL of the API server in the kubeconfig; "" in a pod without one.

        Raises:
            KubectlError: kubectl cannot be run, or the kubeconfig cannot be read.
        """
        wanted = "jsonpath={.clusters[0].cluster.server}"
        done = _run(self.command("config", "view", "--minify", f"--output={wanted}"))
        if done.returncode == 0:
            return done.stdout.strip()
        said = _said(done.stderr)
        if _NOWHERE in said and self.kubeconfig is None and self.context is None:
            self._check_variable()
            return ""
        if _NOWHERE in said and self.context is None:
            raise KubectlError(
                f"the kubeconfig {self.kubeconfig} has no current context",
                hint="choose one with --context",
            )
        raise KubectlError(
            f"kubectl cannot use this kubeconfig: {said}",
            hint="choose the cluster with --kubeconfig and --context",
        )

    @staticmethod
    def _check_variable() -> None:
        """Check that $KUBECONFIG names a file, because kubectl ignores missing files.

        Raises:
            KubectlError: It names only files that do not exist.
        """
        files = [each for each in os.environ.get("KUBECONFIG", "").split(":") if each]
        if files and not any(Path(each).exists() for each in files):
            raise KubectlError(
                f"KUBECONFIG={':'.join(files)} does not exist",
                hint="correct the variable, or give --kubeconfig",
            )

    def sees(self, directory: Path) -> bool:
        """Return True if kubectl can read a file in a directory of this process.

        kubectl as a snap has a /tmp of its own.

        Raises:
            KubectlError: kubectl cannot be run.
        """
        config = directory / "probe"
        config.write_text(f'{{"kind": "Config", "current-context": "{_SEEN}"}}')
        probing = Kubectl(program=self.program, kubeconfig=config)
        wanted = "jsonpath={.current-context}"
        done = _run(probing.command("config", "view", f"--output={wanted}"))
        return _SEEN in done.stdout


class Proxy:
    """Watch a running `kubectl proxy`.

    Args:
        socket: Path of the socket on which the proxy listens.
        process: The process of the proxy.
    """

    def __init__(self, socket: Path, process: subprocess.Popen[bytes]) -> None:
        self.socket = socket
        self._process = process

    def check(self) -> None:
        """Check that the proxy still runs.

        Raises:
            KubectlError: The proxy has ended.
            KeyboardInterrupt: Ctrl-C has ended the proxy; it is meant for both.
        """
        code = self._process.poll()
        if code in {-signal.SIGINT, 128 + signal.SIGINT}:  # a shell adds 128
            raise KeyboardInterrupt
        if code is not None:
            raise KubectlError(
                f"kubectl exited with code {code}",
                hint="read its output above, and run `kubectl get --raw /readyz`",
            )


@contextlib.contextmanager
def running_proxy(
    kubectl: Kubectl, flags: tuple[str, ...] = REWRITING
) -> Iterator[Proxy]:
    """Run `kubectl proxy` on a socket in a private directory.

    The proxy shares stdin and stderr with this process, because an exec plugin may ask
    for something. SIGTERM, and SIGHUP of a terminal that is closed, end the block as
    Ctrl-C does, so that the proxy and the directory never stay.

    Args:
        kubectl: The kubectl to run.
        flags: `REWRITING` or `MIGRATING`.

    Raises:
        KubectlError: The proxy does not start.
    """
    terminable = raising_when_ended()
    with terminable, tempfile.TemporaryDirectory(prefix="hsm-kms-") as directory:
        path = Path(directory) / "api"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise KubectlError(
                f"{path} is too long for a socket", hint="set TMPDIR to a shorter path"
            )
        command = kubectl.command("proxy", f"--unix-socket={path}", *flags)
        # If this process is killed by SIGKILL, the kernel kills the proxy.
        tied = python_command("hsm_kms.pdeathsig", str(os.getpid()), *command)
        process = subprocess.Popen(tied, stdout=subprocess.DEVNULL)  # noqa: S603 - the user's own
        try:
            proxy = Proxy(path, process)
            _await_socket(proxy, kubectl)
            yield proxy
        finally:
            _stop(process, path)


def _await_socket(proxy: Proxy, kubectl: Kubectl) -> None:
    try:
        _listening(proxy)
    except KubectlError:
        directory = proxy.socket.parent
        if kubectl.sees(directory):
            raise
        raise KubectlError(
            f"kubectl cannot use the directory {directory.parent}: it sees another one "
            "there, as a snap does, or may not read it",
            hint="set TMPDIR to a directory that kubectl can use too, such as "
            'TMPDIR="$HOME"',
        ) from None


def _listening(proxy: Proxy) -> None:
    until = time.monotonic() + START_SECONDS
    while _listener(proxy.socket) is None:
        proxy.check()
        if time.monotonic() > until:
            raise KubectlError(f"kubectl did not listen within {START_SECONDS:g} s")
        time.sleep(0.02)


def _listener(path: Path) -> int | None:
    """Return the ID of the process that listens on a socket, or None if none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        return int(_PEER.unpack(peer)[0])


def _stop(process: subprocess.Popen[bytes], path: Path) -> None:
    listener = _listener(path)
    if listener and listener != process.pid:  # a wrapper started kubectl as a child
        with contextlib.suppress(OSError):
            os.kill(listener, signal.SIGTERM)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the user's own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise KubectlError(f"kubectl did not end within {START_SECONDS:g} s") from None
    except OSError as error:
        raise KubectlError(f"{command[0]} cannot be run: {error.strerror}") from None


def _said(stderr: str) -> str:
    text = stderr.strip().removeprefix("error: ") or "no error message"
    return printable(text, _MAX_TEXT_CHARS)
