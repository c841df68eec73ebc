"""A server on SoftHSM2 under the sandbox of manifests/systemd/hsm-kms.service.

systemd itself does not run here: tests.harness.sandbox reads the unit and applies each
directive by the same system calls.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import command_line
from tests.harness.processes import namespace_prefix
from tests.harness.sandbox import directives
from tests.harness.wait import patient, wait_for

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "manifests" / "systemd" / "hsm-kms.service"

TRIES = """
import ctypes, errno, mmap, os, socket
def refused(number, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except OSError as error:
        assert error.errno == number, (call, arguments, error)
    else:
        raise AssertionError((call, arguments))
both = mmap.PROT_WRITE | mmap.PROT_EXEC
refused(errno.EPERM, mmap.mmap, -1, 4096, prot=both)
refused(errno.EAFNOSUPPORT, socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
socket.socket(socket.AF_INET6)
refused(errno.EROFS, open, "/etc/hsm-kms-was-here", "w")
refused(errno.EROFS, open, "/proc/sys/kernel/core_pattern", "w")
refused(errno.EPERM, os.nice, 1)
refused(errno.EPERM, os.setuid, 1)
refused(errno.EPERM, os.chroot, "/")
refused(errno.EPERM, os.chmod, OWN, 0o4700)
libc = ctypes.CDLL(None, use_errno=True)
for call in ((b"unshare", 0x10000000), (b"personality", 8)):
    assert getattr(libc, call[0].decode())(call[1]) == -1, call
assert os.listdir("/root") == [] or KEPT
assert not os.path.exists("/dev/kmsg")
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
print("all refused")
"""


@pytest.fixture(scope="module")
def sandbox():
    """Return the beginning of a command that runs in the sandbox."""
    if ctypes.util.find_library("seccomp") is None or not shutil.which(
        "systemd-analyze"
    ):
        pytest.skip("no libseccomp or systemd-analyze: run tests/packages.sh")
    if os.geteuid() != 0 or not namespace_prefix():
        pytest.skip("only root may make a mount namespace")
    program = [sys.executable, "-m", "tests.harness.sandbox", str(UNIT)]
    return ["unshare", "--mount", *program]


def test_the_sandbox_confines(sandbox, directory):
    """What the directives forbid is refused in it, or the other tests prove nothing."""
    tries = TRIES.replace("OWN", repr(str(directory))).replace(
        "KEPT", repr(any(Path(each).is_relative_to("/root") for each in sys.path))
    )
    ended = subprocess.run(
        [*sandbox, str(directory), "--", sys.executable, "-c", tries],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )

    assert (0, "all refused\n") == (ended.returncode, ended.stdout), ended.stderr


def test_a_server_serves_in_it(sandbox, make_plugin, hsm, directory):
    """Encrypt, reload, a lost worker and listen.group work in the sandbox."""
    listen = {"group": str(os.getegid()), "mode": "0660"}
    plugin = make_plugin(hsm, listen=listen)
    plugin.config["token"]["workers"] = 2
    plugin.write_config()
    # The session's PIN file is in another directory, which is not shown in there.
    pin = plugin.directory / "pin"
    shutil.copy(plugin.config["token"]["pin_file"], pin)
    pin.chmod(0o400)
    plugin.config["token"]["pin_file"] = str(pin)
    plugin.write_config()
    writable = [str(directory)]
    serve = [*command_line.HSM_KMS, "serve", "--config", str(plugin.config_file)]
    serve[0] = shutil.which(serve[0]) or serve[0]
    with plugin.log_file.open("ab") as log:
        plugin.process = subprocess.Popen(
            [*sandbox, *writable, "--", *serve], cwd=ROOT, stdout=log, stderr=log
        )
    wait_for(lambda: plugin.socket.exists() or plugin.process.poll() is not None)
    assert plugin.socket.exists(), plugin.log()
    plugin.wait_healthz("ok")
    sealed = plugin.encrypt(b"data key")
    assert 0o660 == plugin.socket.stat().st_mode & 0o777

    plugin.process.send_signal(signal.SIGHUP)
    first = set(plugin.worker_pids())
    os.kill(min(first), signal.SIGKILL)
    wait_for(lambda: len(set(plugin.worker_pids()) - first) > 0)
    plugin.wait_healthz("ok")
    assert b"data key" == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    status = Path(f"/proc/{plugin.process.pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert 0 == plugin.stop()
    assert "Traceback" not in plugin.log()


def test_every_directive_is_tried():
    """The sandbox of these tests knows each directive of the unit that confines."""
    known = (ROOT / "tests" / "harness" / "sandbox.py").read_text()
    confining = {
        name
        for name in directives(UNIT)
        if name.startswith(("Protect", "Private", "Restrict", "SystemCall", "Memory"))
    }
    # The system calls that these would forbid are in no allowed set, and Python makes
    # one kind of call alone.
    implied = {
        *("ProtectClock", "ProtectHostname", "ProtectKernelLogs", "RestrictRealtime"),
        *("ProtectKernelModules", "SystemCallArchitectures", "SystemCallErrorNumber"),
        "MemorySwapMax",
    }

    assert set() == {name for name in confining - implied if f'"{name}"' not in known}
