"""The service, installed as docs/install/systemd.md says, with systemd as process 1."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.harness.plugin import WORKERS
from tests.harness.softhsm import PIN, SO_PIN, softhsm_module
from tests.harness.systemd_node import SystemdNode, why_not
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs" / "install" / "systemd.md"
WRONG = "1111-Wrong-PIN"
SOCKET = "/run/hsm-kms/kms.sock"
CONFIG = "/etc/hsm-kms/config.yaml"
DROP_INS = "/etc/systemd/system/hsm-kms.service.d"
CREDENTIAL = "/run/credentials/hsm-kms.service/pin"
REJECTED = "the token rejected the PIN"
# Stands for kubelet: it fails unless the socket is there when it starts.
KUBELET = f"""
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/test -S {SOCKET}
"""


BOOT = """
[Unit]
Wants=kubelet.service hsm-kms.service
After=kubelet.service hsm-kms.service
"""

# What each directive of the unit forbids; run by the unit itself.
TRIES = """
import ctypes, errno, mmap, os, socket
def refused(number, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except OSError as error:
        assert error.errno == number, (call, arguments, error)
    else:
        raise AssertionError((call, arguments))
def none(call, *arguments):
    assert getattr(libc, call)(*arguments) == -1, call
libc = ctypes.CDLL(None, use_errno=True)
both = mmap.PROT_WRITE | mmap.PROT_EXEC
refused(errno.EPERM, mmap.mmap, -1, 4096, prot=both)
refused(errno.EAFNOSUPPORT, socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
refused(errno.EAFNOSUPPORT, socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
socket.socket(socket.AF_INET6)
for path in ("/etc/x", "/opt/x", "/var/lib/x", "/proc/sys/kernel/core_pattern"):
    refused(errno.EROFS, open, path, "w")
open("/run/hsm-kms/own", "w").close()
refused(errno.EPERM, os.chmod, "/run/hsm-kms/own", 0o4700)
os.chown("/run/hsm-kms/own", -1, os.getegid())
os.remove("/run/hsm-kms/own")
refused(errno.EPERM, os.nice, 1)
refused(errno.EPERM, os.chroot, "/")
refused(errno.EPERM, os.setuid, 1)
refused(errno.EPERM, os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
none("unshare", 0x10000000)
none("personality", 8)
none("init_module", None, 0, b"")
none("sethostname", b"x", 1)
none("klogctl", 3, None, 0)
none("clock_settime", 0, (ctypes.c_long * 2)())
for path in ("/root", "/home"):
    refused(errno.EACCES, os.listdir, path)
assert os.listdir("/tmp") == []
assert not {"kmsg", "mem", "tun"} & set(os.listdir("/dev"))
assert not os.path.exists("/proc/1")
"""

START_TRIES = "systemctl start tries || { journalctl -u tries | tail -5; exit 1; }"


class Service:
    """The service on a node, and what the page's commands do with it.

    Attributes:
        node: The node.
    """

    def __init__(self, node: SystemdNode) -> None:
        self.node = node
        self.run = node.run

    def page(self, commands: str, at: str = "/root/hsm-kms", stdin: str = "") -> None:
        """Run commands of the page as root.

        Args:
            commands: Lines for a shell.
            at: The working directory.
            stdin: What is typed.
        """
        script = f"cd {at}\n{commands}"
        self.run("sh", "-euc", script.replace("systemctl status", ": "), stdin=stdin)

    def install(self, source: str, to: str) -> None:
        """Install a file that `init` wrote."""
        self.run("install", "-D", "-m", "0644", source, to)

    def as_user(self, *command: str, code: int = 0) -> str:
        """Run a command as the service's user."""
        user = ("--reuid=hsm-kms", "--regid=hsm-kms", "--init-groups")
        return self.run("setpriv", *user, *command, code=code)

    def write_pin(self, pin: str) -> None:
        """Write the PIN file."""
        owner = ("-m", "0400", "-o", "hsm-kms", "-g", "hsm-kms")
        self.run("install", *owner, "/dev/stdin", "/etc/hsm-kms/pin", stdin=pin)

    def restart(self) -> None:
        """Restart the service, as after a changed unit."""
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", "hsm-kms")

    def status(self) -> str:
        """Return the line that `systemctl status` shows."""
        return self.node.show("hsm-kms", "StatusText")

    def wait_status(self, text: str) -> None:
        """Wait until `systemctl status` shows something."""
        wait_for(lambda: text == self.status() or text in self.status().split("; "))

    def wait_well(self) -> None:
        """Wait until the service is ok and all workers serve.

        A worker that is killed in its login can break SoftHSM's token.
        """
        self.wait_status("ok")
        wait_for(lambda: self._workers() == WORKERS)

    def _workers(self) -> int:
        status = json.loads(self.as_user("hsm-kms", "status", "-o", "json"))
        ready: int = status["server"]["workers"]["ready"]
        return ready

    def pid(self) -> str:
        """Return the process id of the server."""
        return self.node.show("hsm-kms", "MainPID")

    def log(self) -> str:
        """Return the log of the service."""
        return self.run("journalctl", "-u", "hsm-kms", "-o", "cat", "--no-pager")

    def rejections(self) -> list[str]:
        """Return a line for each login that the token has rejected."""
        return [
            line
            for line in self.log().splitlines()
            if "CKR_PIN_INCORRECT" in line
            and "token worker cannot start" in line
            and '"repeated"' not in line
        ]

    def wait_another(self, pid: str) -> None:
        """Wait until another process than this one serves as the service."""
        wait_for(lambda: self.pid() not in {pid, "0"})
        self.wait_status("ok")


def blocks(heading):
    """Return the blocks of commands below a heading of the page."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^ *```sh\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    return [dedent(block) for block in found]


@pytest.fixture(scope="module")
def installed() -> Iterator[Service]:
    """Take the steps of the page, word for word but for the installation by pip."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    node = SystemdNode()
    try:
        yield follow_the_page(Service(node))
    finally:
        node.close()


def follow_the_page(service):
    program, init, *steps = blocks("Install")
    _, _, _, link = program.splitlines()
    service.page(link, "/")
    module = os.path.realpath(softhsm_module())
    # Cluster, module, and the defaults of the other questions.
    service.page(init, "/root", stdin=f"none\n{module}\n\n\n\n\n\n")
    user, config, pin, unit, key = steps
    service.page(user)
    service.page(config)
    service.install("/root/hsm-kms/softhsm2.conf", "/etc/hsm-kms/softhsm2.conf")
    softhsm = ("env", "SOFTHSM2_CONF=/etc/hsm-kms/softhsm2.conf", "softhsm2-util")
    pins = ("--pin", PIN, "--so-pin", SO_PIN)
    service.as_user(*softhsm, "--init-token", "--free", "--label", "k8s", *pins)
    service.page(pin, stdin=f"{PIN}\n")
    service.page(unit)
    service.page(key)
    return service


@pytest.fixture
def service(installed):
    """The service as the page has installed it, and well."""
    installed.run("rm", "-rf", DROP_INS)
    installed.install("/root/hsm-kms/config.yaml", CONFIG)
    installed.write_pin(PIN)
    installed.restart()
    installed.wait_well()
    return installed


def test_the_page(service):
    """With PIN, token and key, the service that the page installs is well."""
    assert "enabled" == service.node.show("hsm-kms", "UnitFileState")
    assert "10001" == service.run("id", "-u", "hsm-kms").strip()
    assert "✗" not in service.as_user("hsm-kms", "check")
    service.as_user("hsm-kms", "probe", "--socket", SOCKET)


def test_the_starting_order(service):
    """Kubelet starts when the socket serves, whether or not there is a PIN."""
    service.node.write("/etc/systemd/system/kubelet.service", KUBELET)
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "stop", "hsm-kms")
    service.run("rm", "/etc/hsm-kms/pin")
    # As at a boot: one target wants both. systemctl would start one after the other.
    service.node.write("/etc/systemd/system/boot.target", BOOT)
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "start", "boot.target")
    for unit in ("kubelet", "hsm-kms"):
        assert "active" == service.node.show(unit, "ActiveState")
    wait_for(lambda: "there is no PIN" in service.status())
    service.run("systemctl", "stop", "kubelet", "boot.target")


def test_the_sandbox(service):
    """What the directives forbid is refused to a program in the place of the server."""
    unit = service.run("cat", "/etc/systemd/system/hsm-kms.service")
    python, _, _ = service.run("cat", "/opt/hsm-kms/bin/hsm-kms").rpartition(" -P ")
    service.node.write("/opt/hsm-kms/tries.py", TRIES)
    service.node.write(
        "/opt/hsm-kms/tries", f"{python} -P /opt/hsm-kms/tries.py", 0o755
    )
    unit = re.sub(
        "^ExecStart=.*", "ExecStart=/opt/hsm-kms/tries", unit, flags=re.MULTILINE
    )
    unit = unit.replace("Type=notify", "Type=oneshot").replace("Restart=always", "")
    service.node.write("/etc/systemd/system/tries.service", unit)
    service.run("systemctl", "daemon-reload")
    service.run("sh", "-c", START_TRIES)

    text = service.run("cat", f"/proc/{service.pid()}/status")
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"):
        assert line in text
    assert re.search(r"^Uid:\t10001\t", text, re.MULTILINE)


def test_what_the_sandbox_allows(service):
    """Workers are replaced in the sandbox, and the socket gets its group."""
    text = service.run("cat", CONFIG)
    listen = 'listen:\n  mode: "0660"\n  group: hsm-kms\n'
    service.node.write(CONFIG, text.replace("listen:\n", listen))
    service.restart()
    service.wait_well()
    assert "660 hsm-kms" == service.run("stat", "-c", "%a %G", SOCKET).strip()

    workers = service.run("pgrep", "--parent", service.pid()).split()
    service.run("kill", "-9", *workers)
    wait_for(
        lambda: (
            not set(workers) & set(service.run("pgrep", "-P", service.pid()).split())
        )
    )
    service.wait_status("ok")
    service.as_user("hsm-kms", "probe", "--socket", SOCKET)


def test_the_directory_outlives_a_stop(service):
    """The socket directory is the same one after a stop and a start."""
    stat = ("stat", "-c", "%i %a %U", "/run/hsm-kms")
    before = service.run(*stat)
    service.run("systemctl", "stop", "hsm-kms")
    service.run("test", "-e", SOCKET, code=1)
    assert before == service.run(*stat)
    service.run("systemctl", "start", "hsm-kms")
    assert before == service.run(*stat)
    assert before.endswith(" 700 hsm-kms\n")


def test_reload(service):
    """`systemctl reload` has the file read again, and a rejected file shows."""
    text = service.run("cat", CONFIG)
    service.node.write(CONFIG, text + "unknown: 1\n")
    service.run("systemctl", "reload", "hsm-kms")
    service.wait_status("the configuration file is not in force")
    service.node.write(CONFIG, text + "log: {level: debug}\n")
    service.run("systemctl", "reload", "hsm-kms")
    wait_for(lambda: "ok" == service.status())
    wait_for(lambda: "configuration applied" in service.log())


def test_killed(service):
    """A server that is killed is started again, and serves."""
    before = service.pid()
    service.run("kill", "-9", before)
    service.wait_another(before)


def test_watchdog(service):
    """A server that does nothing any more is ended and started again."""
    service.node.write(f"{DROP_INS}/short.conf", "[Service]\nWatchdogSec=10\n")
    service.restart()
    service.wait_well()
    before = service.pid()
    service.run("kill", "-STOP", before)
    service.wait_another(before)
    wait_for(lambda: "Watchdog timeout" in service.log())


def load_credential(service, pin):
    """Encrypt a PIN as the page says, and start the service with it."""
    commands = blocks("A PIN that is encrypted on the disk")[0]
    asked = "systemd-ask-password -n 'PIN:'"
    assert asked in commands
    service.run("rm", "-f", "/etc/hsm-kms/pin.cred")
    # Without a terminal, nobody can be asked.
    service.page(commands.replace(asked, "cat"), "/root/other", stdin=pin)
    service.restart()


def test_an_encrypted_pin(service):
    """A credential serves; a wrong one is tried once, until an operator vouches."""
    service.run("rm", "-rf", "/root/other", "/etc/hsm-kms/pin")
    module = ("--module", os.path.realpath(softhsm_module()), "--yes")
    pin_file = ("--pin-file", CREDENTIAL)
    service.run(
        "hsm-kms", "init", "/root/other", "--cluster", "none", *module, *pin_file
    )
    service.install("/root/other/config.yaml", CONFIG)
    load_credential(service, PIN)
    service.wait_status("ok")
    # A command beside the service reads the same credential.
    assert "✗" not in service.as_user("hsm-kms", "check")

    for _ in range(2):
        load_credential(service, WRONG)
        wait_for(lambda: REJECTED in service.status())
        check = service.as_user("hsm-kms", "check", code=1)
        assert "restart the service, then run `hsm-kms token retry-pin`" in check
    load_credential(service, PIN)
    wait_for(lambda: REJECTED in service.status())
    assert 1 == len(service.rejections())
    assert "accepts" in service.as_user("hsm-kms", "token", "retry-pin")
    service.wait_status("ok")
    service.restart()
    service.wait_status("ok")
    assert PIN not in service.log()
    assert WRONG not in service.log()

    service.run("rm", "/etc/hsm-kms/pin.cred")
    service.run("systemctl", "restart", "hsm-kms", code=1)
    assert "243" == service.node.show("hsm-kms", "ExecMainStatus")
