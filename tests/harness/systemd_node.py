"""A node with systemd as process 1, in namespaces of its own on this machine.

Its file system is this machine's, with an overlay over it: what the node writes is gone
with it. It boots next to nothing, and its network is down but for the loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.harness.command_line import PYTHON
from tests.harness.processes import children_of, name_of
from tests.harness.wait import patient, wait_for

if TYPE_CHECKING:
    from subprocess import CompletedProcess

SYSTEMD: Final = Path("/lib/systemd/systemd")
PROGRAMS: Final = "/opt/hsm-kms"
_PATH: Final = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Unit files that this machine's administrator and packages have enabled are left out,
# and so is what would change the kernel that the node shares with this machine.
_BOOT: Final = """
set -e
mount -t tmpfs tmpfs "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=/,upperdir=$at/upper,workdir=$at/work" overlay "$at/root"
cd "$at/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do
    touch "dev/$each"
    mount --bind "/dev/$each" "dev/$each"
done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
rm -rf etc/systemd/system/* lib/systemd/system/*.target.wants
rm -rf etc/hsm-kms var/lib/hsm-kms var/lib/hsm-kms-token opt/hsm-kms
mkdir -p opt/hsm-kms/bin opt/hsm-kms/lib opt/hsm-kms/python
mount --bind "$library" opt/hsm-kms/lib
mount --bind "$base" opt/hsm-kms/python
cat >opt/hsm-kms/bin/hsm-kms <<END
#!/bin/sh
export LD_LIBRARY_PATH=/opt/hsm-kms/python/lib PYTHONPATH=$path
exec $interpreter -P -m hsm_kms "\\$@"
END
if [ -n "$source" ]; then
    mkdir opt/hsm-kms/source
    mount --bind "$source" opt/hsm-kms/source
fi
chmod 755 opt/hsm-kms opt/hsm-kms/bin opt/hsm-kms/bin/hsm-kms
printf '[Unit]\\nDefaultDependencies=no\\nRequires=systemd-journald.service\\n' \\
    >etc/systemd/system/tests.target
mkdir was
pivot_root . was
umount --lazy was
mount --make-rshared / # as at every boot: mounts of credentials appear everywhere
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \\
    /lib/systemd/systemd --system --unit=tests.target --show-status=0
"""
# What the interpreter of the tests says of itself.
_ASK: Final = """
import hsm_kms, os, sys, sysconfig
print(os.path.realpath(sys.base_prefix))
print("python%d.%d" % sys.version_info[:2])
print(sysconfig.get_path("purelib"))
print(os.path.dirname(os.path.dirname(os.path.abspath(hsm_kms.__file__))))
"""


def why_not() -> str | None:
    """Return why no such node can be made here, or None if one can."""
    if os.geteuid() != 0:
        return "only root may make a node"
    if not SYSTEMD.exists():
        return "no systemd: run tests/packages.sh"
    if _cgroups() is None:
        return "no cgroup2 file system is mounted"
    return None


def _cgroups() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 ") and os.access(mount.split()[4], os.W_OK):
            return Path(mount.split()[4])
    return None


class SystemdNode:
    """A node, from its boot to `close`."""

    def __init__(self) -> None:
        self._at = Path(tempfile.mkdtemp(prefix="hsm-kms-node-"))
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / f"hsm-kms-{uuid.uuid4().hex}"
        self._cgroup.mkdir()
        self._log = (self._at / "log").open("wb")
        enter = 'echo $$ >"$cgroup/cgroup.procs" && exec "$@"'
        kinds = ("mount", "pid", "uts", "ipc", "net", "cgroup")
        unshare = [f"--{kind}" for kind in kinds]
        # Whatever ends this process ends the node, too.
        tied = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]
        boot = [*tied, *unshare, "sh", "-c", _BOOT]
        (self._at / "root").mkdir()
        self._outer = subprocess.Popen(
            ["sh", "-c", enter, "sh", *boot],
            env={**os.environ, **self._environment()},
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._pid = wait_for(self._booted)
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def _environment(self) -> dict[str, str]:
        asked = subprocess.run(
            [PYTHON, "-P", "-c", _ASK], check=True, capture_output=True, text=True
        ).stdout.split("\n")
        base, name, library, source = asked[:4]
        installed = source == library
        return {
            "at": str(self._at / "root"),
            "cgroup": str(self._cgroup),
            "base": base,
            "interpreter": f"/usr/bin/{name}"
            if base == "/usr"
            else f"{PROGRAMS}/python/bin/{name}",
            "library": library,
            "source": "" if installed else source,
            "path": f"{PROGRAMS}/lib"
            if installed
            else f"{PROGRAMS}/source:{PROGRAMS}/lib",
        }

    def _booted(self) -> int | None:
        assert self._outer.poll() is None, (self._at / "log").read_text()
        for pid in children_of(self._outer.pid):
            self._pid = pid
            if name_of(pid) == "systemd":
                running = self._run("systemctl", "is-system-running")
                if running.stdout.strip() in {"running", "degraded"}:
                    return pid
        return None

    def _run(self, *command: str, stdin: str = "") -> CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._pid}", "--all", "--root", "--wd"]
        return subprocess.run(
            [*enter, *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
            text=True,
            check=False,
            timeout=patient(120),
        )

    def run(self, *command: str, stdin: str = "", code: int = 0) -> str:
        """Run a command as root on the node, and return what it prints.

        Args:
            command: Program and arguments.
            stdin: What the command can read.
            code: The exit code that it must end with.
        """
        ended = self._run(*command, stdin=stdin)
        assert code == ended.returncode, (command, ended.returncode, ended.stdout)
        return ended.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the node as root."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}"; cat >"$1"', "sh", path, stdin=text)
        self.run("chmod", f"{mode:o}", path)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, "-P", name).strip()

    def close(self) -> None:
        """End every process of the node, and leave nothing behind."""
        self._log.close()
        self._outer.kill()  # --kill-child: process 1 of the node ends, and so do all
        self._outer.wait(patient())
        wait_for(self._left)
        shutil.rmtree(self._at)

    def _left(self) -> bool:
        """Remove the control groups; return False while one has a process."""
        folders = [Path(path) for path, _, _ in os.walk(self._cgroup, topdown=False)]
        try:
            for each in folders:
                each.rmdir()
        except OSError:
            return False
        return True
