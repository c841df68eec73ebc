"""opencryptoki's software token, with a daemon in namespaces of its own.

The daemon's paths and shared memory are fixed when it is compiled: there is one for
a machine, or one for each pair of mount and IPC namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.harness.softhsm import TOKEN_LABEL
from tests.harness.wait import SECONDS, wait_for
from tests.system.tokens.base import MissingTokenError, Token, library

_SLOT = "3"
_FIRST_SO_PIN = "87654321"  # every token of opencryptoki starts with it
_CONF = f"version opencryptoki-3.1\nslot {_SLOT}\n{{\nstdll = libpkcs11_sw.so\n}}\n"

# Run as root of the new namespaces, with the token's directory as $1.
_DAEMON = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/lock/opencryptoki/swtok /var/log/opencryptoki
mkdir -p "$1/etc" "$1/log" "$1/lib/swtok/TOK_OBJ"
chgrp -R pkcs11 /run/lock/opencryptoki "$1/lib"
chmod -R 770 /run/lock/opencryptoki "$1/lib"
mount --bind "$1/etc" /etc/opencryptoki
mount --bind "$1/lib" /var/lib/opencryptoki
mount --bind "$1/log" /var/log/opencryptoki
exec pkcsslotd -f
"""


class OpenCryptoki(Token):
    """The software token of slot 3; it has no AES-GCM."""

    brand = "opencryptoki"
    mechanism = "aes-cbc-hmac-sha256"
    imported_policy = "warn"  # it does not tell CKA_VALUE_LEN of an imported key
    pin = "84-67Pin"  # it takes 4 to 8 characters
    so_pin: ClassVar[str] = "so-99-11"

    def __init__(self, directory: Path) -> None:
        module = library("libopencryptoki.so", "opencryptoki", "pkcs11", "opencryptoki")
        _demand_tools()
        super().__init__(directory)
        self.module = module
        (directory / "etc").mkdir()
        (directory / "etc" / "opencryptoki.conf").write_text(_CONF)
        self._daemon = self._start()
        self._wait()
        self._pkcsconf("-I", "-S", _FIRST_SO_PIN, stdin=f"{TOKEN_LABEL}\n")
        self._pkcsconf("-P", "-S", _FIRST_SO_PIN, "-n", self.so_pin)
        self._pkcsconf("-u", "-S", self.so_pin, "-n", self.pin)

    def close(self) -> None:
        """End the daemon, and its namespaces with it."""
        self._daemon.terminate()
        self._daemon.wait(SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "daemon.log").open("wb") as log:
            return subprocess.Popen(
                [
                    # The daemon ends with the tests, however they end.
                    *("setpriv", "--pdeathsig", "SIGKILL"),
                    *("unshare", "--mount", "--ipc"),
                    *("sh", "-euc", _DAEMON, "sh", str(self.directory)),
                ],
                stdout=log,
                stderr=log,
            )

    def _wait(self) -> None:
        process = Path(f"/proc/{self._daemon.pid}")

        def listens() -> bool:
            assert self._daemon.poll() is None, self._log()
            return (process / "root/run/pkcsslotd.socket").exists()

        wait_for(listens)
        spaces = process / "ns"
        self.inside = ["nsenter", f"--mount={spaces}/mnt", f"--ipc={spaces}/ipc"]
        # The socket is there before the daemon answers on it.
        wait_for(lambda: _succeeds(*self.inside, "pkcsconf", "-t"))

    def _log(self) -> str:
        return (self.directory / "daemon.log").read_text(errors="replace")

    def _pkcsconf(self, *arguments: str, stdin: str | None = None) -> None:
        self.run("pkcsconf", "-c", _SLOT, *arguments, stdin=stdin)


def _demand_tools() -> None:
    for tool, package in (("pkcsslotd", "opencryptoki"), ("nsenter", "util-linux")):
        if not shutil.which(tool):
            raise MissingTokenError(f"{tool} (package {package}) is not installed")
    if not _succeeds("unshare", "--mount", "--ipc", "true") or os.geteuid() != 0:
        raise MissingTokenError("only root can give opencryptoki's daemon namespaces")


def _succeeds(*command: str) -> bool:
    return not subprocess.run(command, check=False, capture_output=True).returncode
