"""Run a worker: `python -m hsm_kms.worker PARENT_PID CONTROL_FD [FD...]`.

Each descriptor is one end of a SOCK_SEQPACKET pair and becomes one session with its
own thread. The first carries the configuration and is the control session; when it
closes, the worker exits. Nothing secret is in argv or the environment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from hsm_kms import hardening, pdeathsig
from hsm_kms.ipc import framing
from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.messages import (
    Configure,
    Done,
    Failure,
    Leave,
    Reply,
    Request,
    Started,
)
from hsm_kms.worker.cryptoki import timer
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.module import Module
from hsm_kms.worker.session import TokenSession

if TYPE_CHECKING:
    from hsm_kms.worker.handles import KnownGood

CLOSE_SECONDS = 0.5
_STDERR = 2


def main() -> NoReturn:
    """Serve the control session on this thread, and every other session on its own."""
    hardening.harden_process()
    _keep_descriptors()
    pdeathsig.die_with_parent(int(sys.argv[1]))
    # systemd signals every process of a unit, but a worker must live on until the
    # server has drained and closes the control pair.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control, *others = (socket.socket(fileno=int(fd)) for fd in sys.argv[2:])
    module = _start(control)
    # A module without locking of its own must run one call at a time.
    one_at_a_time = nullcontext() if module.os_locking else threading.Lock()
    known_good: KnownGood = {}
    for pair in others:
        session = TokenSession(module, known_good)
        threading.Thread(
            target=_serve, args=(pair, session, one_at_a_time), daemon=True
        ).start()
    _serve(control, TokenSession(module, known_good), one_at_a_time)
    _leave(module)


def _keep_descriptors() -> None:
    """Close every descriptor but stdin, stdout and stderr in what the module execs.

    A program that held the pairs could answer for this worker; a typed PIN is in a
    descriptor, too.
    """
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - pathlib is slow to import
        if number > _STDERR:
            with suppress(OSError):  # the one that listed them is closed by now
                os.set_inheritable(number, False)


def _start(control: socket.socket) -> Module:
    incoming = _buffer()
    number, request = _receive(control, incoming)
    if not isinstance(request, Configure):
        os._exit(2)
    try:
        module = Module(request)
        started = Started(
            os_locking=module.os_locking, library=module.library, token=module.token()
        )
    except WorkerError as error:
        failure = error.as_message()
    except Exception as error:  # noqa: BLE001 - reported to the server before exit
        failure = Failure(cause=Cause.INTERNAL, detail=type(error).__name__)
    else:
        _send(control, number, started)
        return module
    _send(control, number, failure)
    # Exit only once the server has read the reason: it could see the other pairs close
    # first, and report the worker as lost.
    _receive(control, incoming)
    os._exit(1)


def _serve(
    pair: socket.socket,
    session: TokenSession,
    one_at_a_time: AbstractContextManager[object],
) -> None:
    """Answer requests until the other end closes or sends `Leave`."""
    incoming = _buffer()
    while True:
        number, request = _receive(pair, incoming)
        if request is None:
            return
        if isinstance(request, Leave):
            _send(pair, number, Done())
            return
        with one_at_a_time:
            reply = session.answer(request)
        _send(pair, number, reply)


def _buffer() -> memoryview:
    # One for each session: a new buffer for each message costs more than the message.
    return memoryview(bytearray(framing.MAX_MESSAGE_BYTES))


def _receive(pair: socket.socket, incoming: memoryview) -> tuple[int, Request | None]:
    try:
        length = pair.recv_into(incoming)
    except ConnectionError:
        return 0, None
    if not length:
        return 0, None
    try:
        return framing.unpack_request(incoming[:length])
    except msgspec.MsgspecError:
        os._exit(2)
    finally:
        incoming[:length] = bytes(length)  # a DEK may be in it


def _send(pair: socket.socket, number: int, reply: Reply) -> None:
    spent = timer.take()
    datagram = framing.pack_reply(number, reply, spent)
    if len(datagram) > framing.MAX_MESSAGE_BYTES:
        failure = Failure(cause=Cause.INTERNAL, detail="the answer is too long")
        datagram = framing.pack_reply(number, failure, spent)
    try:
        pair.sendall(datagram)
    except OSError:
        return  # the server is gone: the next receive ends the session


def _leave(module: Module) -> NoReturn:
    """Exit after C_CloseAllSessions, or after `CLOSE_SECONDS`; never C_Finalize."""
    closing = threading.Thread(target=_close, args=(module,), daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    os._exit(0)


def _close(module: Module) -> None:
    try:
        module.close_all_sessions()
    except WorkerError:
        return  # the process ends anyway


if __name__ == "__main__":
    main()
