"""Start of a worker: `python -m hsm_kms.worker PARENT_PID CONTROL_FD [FD...]`.

Each descriptor is one end of a SOCK_SEQPACKET pair and becomes one session with its
own thread. The first carries the configuration and is the control session; when it
closes, the worker leaves. Nothing secret is in argv or the environment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import NoReturn

import msgspec

from hsm_kms import hardening
from hsm_kms.worker import messages
from hsm_kms.worker.failures import Cause, WorkerError
from hsm_kms.worker.messages import Configure, Done, Failure, Leave, Reply, Started
from hsm_kms.worker.module import Module
from hsm_kms.worker.session import KnownGood, TokenSession

CLOSE_SECONDS = 0.5


def main() -> NoReturn:
    """Serve the control session on this thread and each other on its own."""
    hardening.harden_process()
    hardening.die_with_parent(int(sys.argv[1]))
    # systemd and a terminal signal the whole group; workers leave when the server
    # closes their control pair, after it has drained.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control, *others = (socket.socket(fileno=int(fd)) for fd in sys.argv[2:])
    module = _start(control)
    known_good: KnownGood = {}
    for pair in others:
        session = TokenSession(module, known_good)
        threading.Thread(target=_serve, args=(pair, session), daemon=True).start()
    _serve(control, TokenSession(module, known_good))
    _leave(module)


def _start(control: socket.socket) -> Module:
    number, request = _receive(control)
    if not isinstance(request, Configure):
        os._exit(2)
    try:
        module = Module(request)
        started = Started(
            os_locking=module.os_locking, library=module.library, token=module.token()
        )
    except WorkerError as error:
        _send(control, number, error.as_message())
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - said to the server, then gone
        _send(
            control, number, Failure(cause=Cause.INTERNAL, detail=type(error).__name__)
        )
        os._exit(1)
    _send(control, number, started)
    return module


def _serve(pair: socket.socket, session: TokenSession) -> None:
    """Answer until the other end closes or says `Leave`."""
    while True:
        number, request = _receive(pair)
        if request is None:
            return
        if isinstance(request, Leave):
            _send(pair, number, Done())
            return
        _send(pair, number, session.answer(request))


def _receive(pair: socket.socket) -> tuple[int, messages.Request | None]:
    try:
        datagram = pair.recv(messages.MAX_MESSAGE_BYTES)
    except ConnectionError:
        return 0, None
    if not datagram:
        return 0, None
    try:
        return messages.unpack_request(datagram)
    except msgspec.MsgspecError:
        os._exit(2)


def _send(pair: socket.socket, number: int, reply: Reply) -> None:
    try:
        pair.sendall(messages.pack(number, reply))
    except OSError:
        return  # nobody waits any more; the next receive says so


def _leave(module: Module) -> NoReturn:
    """C_CloseAllSessions, for half a second at most; never C_Finalize."""
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
