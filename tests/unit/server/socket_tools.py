"""Share between the tests of the socket: servers, foreign listeners, stale sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc.aio

from hsm_kms.server.kms_socket import UnixSocket
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@contextlib.asynccontextmanager
async def serving(path: Path, **settings) -> AsyncIterator[grpc.aio.Server]:
    """Run a gRPC server without any method on a path."""
    unix = UnixSocket(path, **settings)
    await unix.acquire()
    server = grpc.aio.server()
    try:
        unix.bind(server)
        await server.start()
        yield server
    finally:
        await server.stop(0)
        unix.close()


async def answers(path: Path) -> bool:
    """Return whether a gRPC server answers on a path."""
    target = f"unix:{quote(os.fsencode(path))}"
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        try:
            await channel.unary_unary("/any/Method")(b"", timeout=patient())
        except grpc.aio.AioRpcError as e:
            return e.code() is grpc.StatusCode.UNIMPLEMENTED
    return False


@contextlib.contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    """Listen on a path as a foreign program does, which takes no lock."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        yield stranger


def leave_stale_socket(path: Path | str) -> None:
    """Leave a stale socket, as a killed process does."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


def names(directory: Path) -> set[str]:
    """Return the names of the files in a directory."""
    return {each.name for each in directory.iterdir()}


def lock_of(path: Path) -> Path:
    """Return the path of a socket's lock file."""
    return Path(f"{path}.lock")
