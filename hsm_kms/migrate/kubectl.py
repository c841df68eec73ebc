"""The user's own kubectl, as a proxy that only this process can reach.

kubectl logs in however the kubeconfig says (certificates, tokens, exec plugins,
impersonation, proxies), once, and keeps its connection to the API server; we speak
plain HTTP to it over a socket in a private directory. One kubectl for each object
would take thirty times as long and log in each time.

1.  The directory is 0700: whoever reaches the socket has the user's rights.
2.  The proxy passes on GET and PUT below /api and /apis, and nothing else.
3.  It ends with us, however we end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 3.0
_MAX_TEXT_CHARS: Final = 300

_FLAGS: Final = (
    "--accept-paths=^/apis?(/.*)?$",
    "--reject-methods=^POST$,^PATCH$,^DELETE$,^HEAD$,^OPTIONS$",
)
# A SIGKILL leaves nobody to stop it: the kernel does.
_TIED: Final = (sys.executable, "-I", "-m", "hsm_kms.pdeathsig")
_NOWHERE: Final = "current-context must exist in order to minify"
"""What kubectl says where there is no kubeconfig: it may run in a pod."""


class KubectlError(HsmKmsError):
    """kubectl cannot be used, or ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """Which kubectl, and which cluster.

    Args:
        program: A path, or a name looked for in PATH.
        kubeconfig: Handed on as --kubeconfig, or None.
        context: Handed on as --context, or None.
    """

    program: str = "kubectl"
    kubeconfig: Path | None = None
    context: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """The command line.

        Raises:
            KubectlError: There is no such program.
        """
        found = shutil.which(self.program)
        if found is None:
            raise KubectlError(
                f"there is no program {self.program!r}",
                hint="install kubectl, or say where it is with --kubectl",
            )
        options = []
        if self.kubeconfig is not None:
            options.append(f"--kubeconfig={self.kubeconfig}")
        if self.context is not None:
            options.append(f"--context={self.context}")
        return [str(Path(found).absolute()), *options, *arguments]

    def server(self) -> str:
        """URL of the API server, as the kubeconfig has it; "" in a pod without one.

        Raises:
            KubectlError: kubectl cannot be run, or the kubeconfig cannot be read.
        """
        wanted = "jsonpath={.clusters[0].cluster.server}"
        done = _run(self.command("config", "view", "--minify", f"--output={wanted}"))
        if done.returncode == 0:
            return done.stdout.strip()
        said = _said(done.stderr)
        if _NOWHERE in said and self.kubeconfig is None and self.context is None:
            return ""
        raise KubectlError(
            f"kubectl cannot use this kubeconfig: {said}",
            hint="--kubeconfig and --context say which cluster is meant",
        )


class Proxy:
    """A running `kubectl proxy`.

    Args:
        socket: Where it listens.
        process: The program.
    """

    def __init__(self, socket: Path, process: subprocess.Popen[bytes]) -> None:
        self.socket = socket
        self._process = process

    def check(self) -> None:
        """See whether it still runs.

        Raises:
            KubectlError: It does not.
            KeyboardInterrupt: The terminal's Ctrl-C has ended it, and means us too.
        """
        code = self._process.poll()
        if code == -signal.SIGINT:
            raise KeyboardInterrupt
        if code is not None:
            raise KubectlError(
                f"kubectl has ended with code {code}",
                hint="see what it wrote above, and try `kubectl get --raw /readyz`",
            )


@contextlib.contextmanager
def running_proxy(kubectl: Kubectl) -> Iterator[Proxy]:
    """Run `kubectl proxy` on a socket in a directory of its own.

    Its stdin and stderr are ours: an exec plugin may have something to ask.

    Raises:
        KubectlError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="hsm-kms-") as directory:
        path = Path(directory) / "api"
        command = kubectl.command("proxy", f"--unix-socket={path}", *_FLAGS)
        process = subprocess.Popen(  # noqa: S603 - the user's own
            [*_TIED, str(os.getpid()), *command], stdout=subprocess.DEVNULL
        )
        try:
            proxy = Proxy(path, process)
            _await_socket(proxy)
            yield proxy
        finally:
            _stop(process)


def _await_socket(proxy: Proxy) -> None:
    until = time.monotonic() + START_SECONDS
    while not _listens(proxy.socket):
        proxy.check()
        if time.monotonic() > until:
            raise KubectlError(f"kubectl did not listen within {START_SECONDS:g} s")
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
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
    text = stderr.strip().removeprefix("error: ") or "it does not say why"
    return printable(text, _MAX_TEXT_CHARS)
