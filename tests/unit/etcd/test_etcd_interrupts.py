"""Test Ctrl-C while the connection to etcd is closed."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading

import pytest

from hsm_kms.etcd.connection import Link
from hsm_kms.etcd.endpoint import parse_endpoint
from hsm_kms.etcd.tls import Tls, TlsFiles
from hsm_kms.interrupts import held_back

NO_TLS = Tls(TlsFiles(None, None, None), ssl.create_default_context())


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_the_connection_is_closed():
    """The connection is closed first, and its destructor does not wait for it again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = f"127.0.0.1:{silent.getsockname()[1]}"
        link = Link(parse_endpoint(text, secured=False), NO_TLS, None, seconds=5.0)
        # gRPC now watches the state of the connection; to close it waits for that.
        link.connects(0.01)
        threading.Timer(0.02, press_ctrl_c).start()
        with pytest.raises(KeyboardInterrupt):
            close_and_wait(link)
        del link


def close_and_wait(link):
    link.close()
    threading.Event().wait(60)  # if Ctrl-C comes later


def test_held_back():
    """A signal comes at the end of the block, once, and not in the middle."""
    done = []

    def pressed_twice():
        with held_back():
            press_ctrl_c()
            press_ctrl_c()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()

    assert ["the rest of the block"] == done
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)
