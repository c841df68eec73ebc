"""Only one instance owns the path of the socket: locks, live servers, two processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio
import pytest

from hsm_kms.errors import SocketError
from hsm_kms.server.kms_socket import UnixSocket
from tests.harness.log_capture import captured
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient
from tests.unit.server.socket_tools import answers, listener, lock_of, names, serving

ROOT = Path(__file__).parents[3]

# A whole instance: prints "up", then serves until its standard input ends.
INSTANCE = """
import asyncio, sys
from pathlib import Path
import grpc.aio
from hsm_kms.errors import SocketError
from hsm_kms.server.kms_socket import UnixSocket

async def main():
    print("up", flush=True)
    unix = UnixSocket(Path(sys.argv[1]), lock_wait=float(sys.argv[2]))
    try:
        await unix.acquire()
    except SocketError as e:
        sys.exit(e.sentence)
    server = grpc.aio.server()
    unix.bind(server)
    await server.start()
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1)
    unix.close()

asyncio.run(main())
"""


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


def start(path, *, lock_wait=0.0) -> subprocess.Popen:
    """Start an instance in a process of its own, and wait until it is up."""
    process = subprocess.Popen(
        [sys.executable, "-c", INSTANCE, str(path), str(lock_wait)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    return process


async def test_live_owner_without_lock(path):
    """A socket that answers is left alone, lock or no lock (conformance 48)."""
    with listener(path), captured() as log:
        inode = path.lstat().st_ino
        with pytest.raises(SocketError, match="a live server answers on"):
            await UnixSocket(path, lock_wait=0.2).acquire()
        assert inode == path.lstat().st_ino

    (told,) = log.events()
    assert "waiting for another instance to leave the socket" == told["event"]
    assert (os.getpid(), 0.2) == (told["process"], told["seconds"])


async def test_owner_with_full_backlog(path):
    """A server whose backlog is full counts as alive."""
    with listener(path) as busy, contextlib.ExitStack() as stack:
        busy.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(SocketError, match="a live server answers on"):
            await UnixSocket(path, lock_wait=0).acquire()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
async def test_odd_lock(path, kind):
    """A lock that is not a regular file is refused."""
    lock = lock_of(path)
    match kind:
        case "symlink":
            lock.symlink_to("elsewhere")
        case "fifo":
            os.mkfifo(lock)
        case "directory":
            lock.mkdir()
    with pytest.raises(SocketError, match=r"the lock .*/kms\.sock\.lock"):
        await UnixSocket(path).acquire()
    assert not (path.parent / "elsewhere").exists()


async def test_waits_for_another_instance(path):
    """The path is taken as soon as another instance leaves it within `lock_wait`."""
    first = UnixSocket(path)
    await first.acquire()
    second = UnixSocket(path, lock_wait=60)
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    first.close()
    await asyncio.wait_for(waiting, timeout=patient())
    second.close()


async def test_waits_for_a_dying_socket(path):
    """A socket on which a server stops answering within `lock_wait` is replaced."""
    with listener(path):
        unix = UnixSocket(path, lock_wait=60)
        waiting = asyncio.create_task(unix.acquire())
        await asyncio.sleep(0.2)
        assert not waiting.done()
    await asyncio.wait_for(waiting, timeout=patient())
    unix.close()


async def test_waits_no_longer_than_it_should(path):
    """After `lock_wait` the second instance fails with cause and cure."""
    first = UnixSocket(path)
    await first.acquire()
    began = time.monotonic()
    with pytest.raises(SocketError) as caught:
        await UnixSocket(path, lock_wait=0.3).acquire()

    assert 0.3 <= time.monotonic() - began < patient()
    assert (
        f"another hsm-kms holds {path}.lock; stop it, or choose another listen.socket"
    ) == caught.value.sentence
    first.close()


async def test_giving_up_leaves_the_lock_free(path):
    """A wait that is cancelled does not hold the lock."""
    first = UnixSocket(path)
    await first.acquire()
    waiting = asyncio.create_task(UnixSocket(path).acquire())
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.close()
    async with serving(path, lock_wait=0):
        pass


async def test_bind_needs_the_lock(path):
    """A socket whose lock was not acquired cannot be bound."""
    with pytest.raises(SocketError, match="was not acquired"):
        UnixSocket(path).bind(grpc.aio.server())
    assert set() == names(path.parent)


async def test_close_twice(path):
    """A second `close`, or one without `bind`, does nothing."""
    unix = UnixSocket(path)
    unix.close()
    await unix.acquire()
    unix.close()
    unix.close()
    assert {"kms.sock.lock"} == names(path.parent)


async def test_foreign_socket_survives_our_end(path):
    """A socket that another process bound there is not unlinked (conformance 48)."""
    async with serving(path):
        path.unlink()
        stranger = socket.socket(socket.AF_UNIX)
        stranger.bind(str(path))
        stranger.listen()
        inode = path.lstat().st_ino
    with stranger:
        assert inode == path.lstat().st_ino


async def test_two_processes(path):
    """A second process fails, and the first continues to serve (conformance 48)."""
    with start(path) as first:
        assert "serving\n" == await asyncio.to_thread(first.stdout.readline)
        inode = path.lstat().st_ino
        with start(path) as second:
            _, said = await asyncio.to_thread(second.communicate)

        holder = f"another hsm-kms holds {path}.lock (process {first.pid})"
        on_page = {str(path): "/path/kms.sock", str(first.pid): "4711"}
        assert is_explained(f"hsm-kms: {holder}", on_page)
        assert (1, holder) == (
            second.returncode,
            said.partition(";")[0],
        )
        assert inode == path.lstat().st_ino
        assert await answers(path)
        await asyncio.to_thread(first.communicate)
    assert 0 == first.returncode
    assert {"kms.sock.lock"} == names(path.parent)


async def test_second_process_without_lock_file(path):
    """Without its lock file a path on which a server answers is still not taken."""
    with start(path) as first:
        assert "serving\n" == await asyncio.to_thread(first.stdout.readline)
        lock_of(path).unlink()
        with start(path) as second:
            _, said = await asyncio.to_thread(second.communicate)

        owner = f"a live server answers on {path} (process {first.pid})"
        assert owner == said.partition(";")[0]
        assert await answers(path)
        await asyncio.to_thread(first.communicate)


async def test_killed_process_is_followed(path):
    """After a kill the next instance serves at once (conformance 49)."""
    with start(path, lock_wait=60) as first, start(path, lock_wait=60) as second:
        said = {
            asyncio.create_task(asyncio.to_thread(each.stdout.readline)): each
            for each in (first, second)
        }
        (done,), (waiting,) = await asyncio.wait(
            said, return_when=asyncio.FIRST_COMPLETED
        )
        assert "serving\n" == done.result()
        said[done].send_signal(signal.SIGKILL)
        assert "serving\n" == await asyncio.wait_for(waiting, timeout=patient())
        assert await answers(path)
        await asyncio.to_thread(said[waiting].communicate)


async def test_children_do_not_keep_the_lock(path):
    """A child process that outlives the server does not hold the path."""
    async with serving(path):
        child = await asyncio.create_subprocess_exec("sleep", "60", close_fds=False)
    try:
        async with serving(path, lock_wait=0):
            assert await answers(path)
    finally:
        child.kill()
        await child.wait()
