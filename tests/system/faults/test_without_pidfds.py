"""A kernel, or a seccomp profile, without pidfds."""

from __future__ import annotations

import platform
import sys

import pytest

from tests.harness import command_line
from tests.harness.plugin import code_of
from tests.harness.processes import alive, stop
from tests.harness.wait import wait_for
from tests.system.faults.observed import QUICK

# Installs a seccomp filter that answers ENOSYS to pidfd_open and pidfd_send_signal, as
# a kernel before 5.3 does, and becomes the program.
WITHOUT_PIDFDS = """
import ctypes, errno, os, struct, sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
code = [
    (LOAD, 0, 0, 0),
    (EQUAL, 1, 0, 434),
    (EQUAL, 0, 1, 424),
    (RETURN, 0, 0, 0x00050000 | errno.ENOSYS),
    (RETURN, 0, 0, 0x7FFF0000),
]
program = ctypes.create_string_buffer(
    b"".join(struct.pack("HBBI", *line) for line in code)
)
libc = ctypes.CDLL(None, use_errno=True)
given = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, given, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def without_pidfds(make_rig, monkeypatch):
    """A server of one worker, on a kernel without pidfds."""
    if platform.machine() not in {"x86_64", "aarch64"}:
        pytest.skip("the numbers of the system calls are those of two architectures")
    launcher = (sys.executable, "-c", WITHOUT_PIDFDS)
    monkeypatch.setattr(command_line, "HSM_KMS", (*launcher, *command_line.HSM_KMS))
    rig = make_rig(token={"workers": 1, **QUICK})
    rig.start(spawn=True)
    rig.well()
    return rig


def test_worker_is_killed_all_the_same(without_pidfds):
    """A hung worker is killed and replaced, and the log says what is missing."""
    rig = without_pidfds
    (hung,) = rig.workers()
    stop(hung)
    assert "OK" != code_of(lambda: rig.plugin.encrypt(b"dek"))
    wait_for(lambda: not alive(hung))
    rig.well()
    (event,) = rig.plugin.events("no pidfds: workers are killed by process id")

    assert "Function not implemented" == event["error"]
    assert "Linux 5.3" in event["hint"]
    assert rig.plugin.encrypt(b"dek").ciphertext
    assert 0 == rig.plugin.stop()
