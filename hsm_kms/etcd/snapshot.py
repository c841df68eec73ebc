"""Read a snapshot file of etcd by restoring it into a private, temporary etcd.

A restored snapshot may contain unencrypted objects. So directory and sockets are
accessible to this user only, nothing listens on TCP, and all of it is removed at the
end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from hsm_kms.another_python import python_command
from hsm_kms.etcd.connection import Login, UnreachableError
from hsm_kms.etcd.live import Access, Etcd
from hsm_kms.etcd.snapshot_file import prepared, require_file
from hsm_kms.etcd.source import DEFAULT_PREFIX, EtcdError, Item
from hsm_kms.etcd.text import printable
from hsm_kms.interrupts import raising_when_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 60.0  # a new etcd reads everything from the disk first

_RETRY_SECONDS: Final = 0.1
_NO_HASH: Final = "missing hash"  # in the error message of etcdutl
_OWN_VARIABLES: Final = ("ETCD_", "ETCDCTL_", "ETCDUTL_")


class Snapshot:
    """Read a snapshot file; see `hsm_kms.etcd.source.Source`.

    This needs etcdutl and etcd in PATH, and as much temporary space as the size of the
    snapshot; twice that if it is compressed.

    Args:
        path: A file that `etcdctl snapshot save` wrote, also compressed by gzip or zip;
            or a copy of the database in a data directory of etcd.
        login: A user of that etcd, or None if it had no users.
        prefix: Prefix of the keys to read.
        skip_hash_check: Accept a file without a hash, which a copied database is.
    """

    def __init__(
        self,
        path: Path,
        login: Login | None = None,
        *,
        prefix: bytes = DEFAULT_PREFIX,
        skip_hash_check: bool = False,
    ) -> None:
        self.prefix = prefix
        self.name = str(path)
        self._path = path
        self._login = login
        self._options = ["--skip-hash-check"] if skip_hash_check else []
        self._open = contextlib.ExitStack()
        self._etcd: Etcd | None = None

    @property
    def revision(self) -> int | None:
        """Return the revision of the snapshot; None before the first page."""
        return self._etcd.revision if self._etcd else None

    def __enter__(self) -> Self:
        """Restore the snapshot, and start an etcd on it.

        Raises:
            EtcdError: A program is missing, or the file is not a snapshot.
        """
        require_file(self._path)
        etcdutl, etcd = _program("etcdutl"), _program("etcd")
        with contextlib.ExitStack() as opened:
            opened.enter_context(raising_when_ended())  # cleans up, as on Ctrl-C
            folder = opened.enter_context(_private_folder())
            self._restore(etcdutl, folder)
            server = opened.enter_context(_running(etcd, folder))
            self._etcd = opened.enter_context(self._connected(server, folder))
            self._open = opened.pop_all()
        return self

    def _restore(self, etcdutl: str, folder: Path) -> None:
        path = prepared(self._path.absolute(), folder)
        command = [etcdutl, "snapshot", "restore", str(path), *self._options]
        done = subprocess.run(  # noqa: S603 - a program of the operator's PATH
            [*command, "--data-dir", str(folder / _DATA)],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise _unrestored(self._path, _last_line(done.stderr))

    def _connected(self, server: _Server, folder: Path) -> Etcd:
        access = Access(login=self._login, command_timeout=REQUEST_SECONDS)
        until = time.monotonic() + START_SECONDS
        while True:
            etcd = Etcd([f"unix://{folder / _CLIENT}"], access, prefix=self.prefix)
            try:
                with etcd:
                    pass
            except UnreachableError:
                server.check()
                if time.monotonic() > until:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return etcd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the etcd, and remove the restored files."""
        self._open.close()

    def __iter__(self) -> Iterator[Item]:
        """Return an iterator over every object below the prefix.

        Raises:
            EtcdError: Not every object could be read.
        """
        return iter(self._restored)

    def get(self, key: bytes) -> Item | None:
        """Return the object with this key, or None if there is none.

        Raises:
            EtcdError: The object could not be read.
        """
        return self._restored.get(key)

    def total(self) -> int | None:
        """Return the number of objects; None before the first page."""
        return self._restored.total()

    def share(self) -> float | None:
        """Return how much has been read, from 0 to 1; None before the first page."""
        return self._restored.share()

    @property
    def _restored(self) -> Etcd:
        if self._etcd is None:
            raise ValueError("not entered")
        return self._etcd


_CLIENT: Final = "client"
_LOG: Final = "log"
_DATA: Final = "data"


class _Server:
    """Watch the process of the temporary etcd."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._log = folder / _LOG

    def check(self) -> None:
        """Check that the process still runs.

        Raises:
            EtcdError: The process has ended; the message has its last line of output.
        """
        code = self._process.poll()
        if code is not None:
            said = _last_line(self._log.read_bytes())
            raise EtcdError(f"the temporary etcd exited with code {code}: {said}")


def _unrestored(path: Path, said: str) -> EtcdError:
    if _NO_HASH in said:
        return EtcdError(
            f"{path} has no hash: it is a copied database, or is truncated",
            hint="give --skip-hash-check if it was copied from member/snap/db in the "
            "data directory of an etcd that was stopped",
        )
    return EtcdError(
        f"{path} cannot be restored: {said}",
        hint="give a file that `etcdctl snapshot save` wrote",
    )


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise EtcdError(
            f"{name} is not in PATH; reading a snapshot needs etcdutl and etcd",
            hint="install both from a release of etcd",
        )
    return str(Path(found).absolute())


@contextlib.contextmanager
def _running(etcd: str, folder: Path) -> Iterator[_Server]:
    command = [
        *python_command("hsm_kms.pdeathsig", str(os.getpid()), etcd),
        *("--data-dir", str(folder / _DATA), "--unsafe-no-fsync", "--log-level=error"),
        *("--listen-client-urls", f"unix://{folder / _CLIENT}"),
        # The URL must have the form host:port; it names a socket file in the directory.
        *("--listen-peer-urls", "unix://peer:0"),
        *("--advertise-client-urls", "http://localhost:2379"),
    ]
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - a program of the operator's PATH
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield _Server(process, folder)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="hsm-kms-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def _environment() -> dict[str, str]:
    """Return the environment without the variables that configure the user's etcd."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OWN_VARIABLES)
    }


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "backslashreplace").strip().splitlines()
    return printable(lines[-1], 300) if lines else "no output"
