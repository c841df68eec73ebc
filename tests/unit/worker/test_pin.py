"""A PIN file that holds more than a PIN is refused before C_Login."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from hsm_kms.ipc.messages import Login
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.pin import read_pin

if TYPE_CHECKING:
    from pathlib import Path

GOOD = (
    b"1234",
    b"1234\n",
    b"p in",
    "Größe".encode(),
    b"=pin",
    b"'",
    b"pins",
    b"x" * 1023,
)

ODD = {
    b"1234\r\n": "ends with a carriage return",
    b"1234\r": "ends with a carriage return",
    b"1234\n\n": "ends with more than one newline",
    b"1234\r\n\n": "ends with more than one newline",
    b"\n1234": "begins with an empty line",
    b"12\n34": "has more than one line",
    b"1234 \n": "ends with a blank",
    b"1234\t": "ends with a blank",
    b" 1234": "begins with a blank",
    b"\xef\xbb\xbf1234": "begins with a byte-order mark",
    "1234".encode("utf-16"): "begins with a byte-order mark",
    "1234".encode("utf-16-le"): "contains a control character",
    b"12\x0034": "contains a control character",
    b"pin=1234": "has a name before the PIN",
    b"PIN: 1234\n": "has a name before the PIN",
    b"user-pin = 1234": "has a name before the PIN",
    b'"1234"\n': "has quotation marks around the PIN",
    b"'1234'": "has quotation marks around the PIN",
    b"\n": "holds no PIN",
    b"x" * 1024: "is too long for a PIN",
    b"x" * 5000: "is too long for a PIN",
}


def login(file: Path) -> Login:
    """Return the request to log in with the PIN in `file`."""
    found = file.stat()
    identity = (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    return Login(pin_file=str(file), identity=identity, user_type=1, refuse_low=False)


def test_only_one_newline_is_removed(tmp_path):
    """The PIN is the content of the file without one final newline."""
    file = tmp_path / "pin"
    for content in GOOD:
        file.write_bytes(content)
        assert content.removesuffix(b"\n") == read_pin(login(file))


def test_odd_content_is_refused(tmp_path):
    """Each accident is named, and the error quotes nothing of the file."""
    file = tmp_path / "pin"
    for content, reason in ODD.items():
        file.write_bytes(content)
        with pytest.raises(WorkerError) as caught:
            read_pin(login(file))
        error = caught.value
        assert ("pin-content", f"{file} {reason}") == (error.cause, error.detail)


def test_typed(tmp_path):
    """A PIN that was typed is not described by the path of the memory it lies in."""
    descriptor = os.memfd_create("pin")
    try:
        os.write(descriptor, b"1234 ")
        path = f"/proc/self/fd/{descriptor}"
        request = Login(pin_file=path, identity=None, user_type=1, refuse_low=False)
        with pytest.raises(WorkerError, match="the typed PIN ends with a blank"):
            read_pin(request)
    finally:
        os.close(descriptor)
