"""The path and the mode of the socket, seen with real gRPC servers."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES
from hsm_kms.errors import SocketError
from hsm_kms.server.kms_socket import UnixSocket
from tests.unit.server.socket_tools import (
    answers,
    leave_stale_socket,
    lock_of,
    names,
    serving,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may chown")


@pytest.fixture
def directory():
    """Create a directory with a short name, so that a path of 107 bytes fits in it."""
    made = Path(tempfile.mkdtemp(prefix="kms-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def path(directory):
    """Return the path of a socket that does not exist yet."""
    return directory / "kms.sock"


def modes_seen(path, stop) -> set[tuple[int, int]]:
    """Poll a path without pause; return every mode and group that it had."""
    seen = set()
    while not stop.is_set():
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            seen.add((stat.S_IMODE(found.st_mode), found.st_gid))
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": 0o660},
        pytest.param({"mode": 0o660, "group": "54321"}, marks=needs_root),
    ],
    ids=["default", "0660", "group"],
)
async def test_mode_from_the_first_instant(path, settings):
    """The socket has no other mode or group, whatever the umask (conformance 47)."""
    stop = threading.Event()
    umask = os.umask(0)
    try:
        watching = asyncio.create_task(asyncio.to_thread(modes_seen, path, stop))
        for _ in range(20):
            async with serving(path, **settings):
                await asyncio.sleep(0.002)
        assert 0 == os.umask(0)
    finally:
        os.umask(umask)
        stop.set()

    group = int(settings.get("group", path.parent.stat().st_gid))
    assert {(settings.get("mode", 0o600), group)} == await watching


async def test_group_by_name(path):
    """The group can be given by its name."""
    name = grp.getgrgid(os.getegid()).gr_name
    async with serving(path, mode=0o660, group=name):
        assert (0o660, os.getegid()) == (
            stat.S_IMODE(path.stat().st_mode),
            path.stat().st_gid,
        )


async def test_unknown_group(path):
    """A group that does not exist is refused by its name, and no socket is left."""
    with pytest.raises(SocketError, match="there is no group 'no-such-group'"):
        async with serving(path, group="no-such-group"):
            pass

    assert set() == names(path.parent)


@pytest.mark.parametrize("name", ["kms.sock", "k m%41#?é.sock", "k", "~", "kms~"])
async def test_serves_and_leaves(directory, name):
    """A server answers at exactly this path; afterwards only the lock file is left."""
    path = directory / name
    async with serving(path):
        assert await answers(path)
        assert {name, f"{name}.lock"} == names(directory)
    assert {f"{name}.lock"} == names(directory)
    assert 0o600 == stat.S_IMODE(lock_of(path).stat().st_mode)


@pytest.mark.parametrize("last", ["k", "~"])
async def test_longest_path(directory, last):
    """A path of 107 bytes serves."""
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(directory)) - 2
    path = directory / ("k" * room + last)
    assert MAX_SOCKET_PATH_BYTES == len(os.fsencode(path))
    async with serving(path):
        assert await answers(path)


async def test_path_too_long(directory):
    """A path of 108 bytes is refused, also if it has fewer letters."""
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(directory)) - 2
    path = directory / ("k" * room + "é")
    with pytest.raises(SocketError, match=r"has 108 bytes, .* at most 107"):
        await UnixSocket(path).acquire()
    assert set() == names(directory)


@pytest.mark.parametrize("path", ["kms.sock", "/tmp/k\0ms.sock"])  # noqa: S108
async def test_odd_paths(path):
    """A relative path and one with a NUL are refused."""
    with pytest.raises(SocketError, match="is not absolute"):
        await UnixSocket(Path(path)).acquire()


async def test_stale_socket_is_removed(path):
    """A socket on which no server answers is replaced (conformance 48)."""
    leave_stale_socket(path)
    leave_stale_socket(f"{path}~")
    async with serving(path):
        assert await answers(path)
        assert {"kms.sock", "kms.sock.lock"} == names(path.parent)


async def test_datagram_socket(path):
    """A socket of another type is not mistaken for a stale one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(SocketError, match="cannot find out whether a server uses"):
            await UnixSocket(path, lock_wait=0).acquire()
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "symlink", "directory", "fifo"])
async def test_something_else_in_its_place(path, kind):
    """A file that is not a socket is refused and stays."""
    match kind:
        case "file":
            path.write_text("mine")
        case "symlink":
            leave_stale_socket(path.with_name("other"))
            path.symlink_to("other")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(SocketError, match="exists and is not a socket"):
        await UnixSocket(path).acquire()

    assert before.st_ino == path.lstat().st_ino


async def test_missing_directory(directory):
    """A missing directory is not created: its permissions are the operator's choice."""
    with pytest.raises(SocketError) as caught:
        await UnixSocket(directory / "run" / "kms.sock").acquire()

    assert (
        f"cannot use the socket's directory {directory}/run: "
        "No such file or directory; "
        f"as root, run: install -d -m 0750 -o {os.geteuid()} -g {os.getegid()} "
        f"{directory}/run"
    ) == caught.value.sentence


async def test_file_for_a_directory(directory):
    """A path below a file is refused."""
    (directory / "run").write_text("")
    with pytest.raises(SocketError, match="run is not a directory"):
        await UnixSocket(directory / "run" / "kms.sock").acquire()


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o770, 0o775])
async def test_directories_that_are_accepted(path, mode):
    """Other users may read the directory, and the process's own group may write."""
    os.chown(path.parent, -1, os.getegid())
    path.parent.chmod(mode)
    async with serving(path):
        assert await answers(path)


@pytest.mark.parametrize("mode", [0o702, 0o777, 0o1777])
async def test_directory_writable_by_others(path, mode):
    """A directory that others can write to is refused, also if sticky (47)."""
    path.parent.chmod(mode)
    with pytest.raises(SocketError, match="is writable by others"):
        await UnixSocket(path).acquire()
    assert set() == names(path.parent)


@needs_root
async def test_directory_writable_by_a_foreign_group(path):
    """A directory that another group can write to is refused."""
    os.chown(path.parent, -1, 54321)
    path.parent.chmod(0o770)
    with pytest.raises(SocketError, match="is writable by others"):
        await UnixSocket(path).acquire()


@needs_root
async def test_directory_of_another_user(path):
    """A directory of another user is refused, because that user can write to it."""
    os.chown(path.parent, 54321, -1)
    with pytest.raises(SocketError, match="belongs to user 54321"):
        await UnixSocket(path).acquire()
