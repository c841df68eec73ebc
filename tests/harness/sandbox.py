"""Run a command under the sandbox directives of a systemd unit, without systemd.

    unshare --mount python -m tests.harness.sandbox UNIT WRITABLE... -- COMMAND...

Each directive is applied as systemd.exec(5) describes it, with the same means: mounts,
capabilities, prctl(2) and seccomp(2), the latter by libseccomp. Must run as root, in a
mount namespace of its own. Directives that name no file, device or system call (limits,
the user, the watchdog) are left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from hsm_kms.hardening import prctl

ROOT: Final = Path(__file__).parents[2]
ALLOW: Final = 0x7FFF0000  # SCMP_ACT_ALLOW; see seccomp_init(3)
FAIL: Final = 0x00050000  # SCMP_ACT_ERRNO
NOT_EQUAL: Final = 1  # SCMP_CMP_*
EQUAL: Final = 4
MASKED: Final = 7
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_MOST_FAMILIES: Final = 64

Unit = dict[str, list[str]]


def directives(unit: Path) -> Unit:
    """Return the settings of a unit with all their values, in order."""
    found: Unit = {}
    for line in unit.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


class _Mounts:
    """Change the mount namespace of this process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._run("--make-rprivate", "/")

    def _run(self, *arguments: object) -> None:
        # -c: a path below /proc/PID/fd must not be resolved to what it was opened by.
        subprocess.run(["/bin/mount", "-c", *map(str, arguments)], check=True)

    def set_attributes(self, path: Path, add: int, clear: int, flags: int = 0) -> None:
        """Call mount_setattr(2) for a mount point."""
        attributes = (ctypes.c_uint64 * 4)(add, clear, 0, 0)
        code = self._libc.syscall(442, -100, bytes(path), flags, attributes, 32)
        if code != 0:
            raise OSError(ctypes.get_errno(), f"mount_setattr {path}")

    def read_only(self, path: Path, *, writable: list[Path]) -> None:
        """Make a tree read-only, except some directories in it."""
        if not path.is_mount():
            self._run("--rbind", path, path)
        for each in writable:
            self._run("--rbind", each, each)
        self.set_attributes(path, 1, 0, 0x8000)
        for each in writable:
            self.set_attributes(each, 0, 1, 0x8000)

    def hide(self, directory: Path, *, keep: list[Path]) -> None:
        """Put an empty directory over another, and show what is kept of the old one."""
        if not directory.is_dir():
            return
        kept = {
            each: os.open(each, os.O_PATH)
            for each in keep
            if each.exists() and each.is_relative_to(directory)
        }
        self._run("-t", "tmpfs", "-o", "mode=1777", "tmpfs", directory)
        for each, descriptor in kept.items():
            old = f"/proc/{os.getpid()}/fd/{descriptor}"
            each.parent.mkdir(parents=True, exist_ok=True)
            if os.path.isdir(old):  # noqa: PTH112
                each.mkdir(exist_ok=True)
            else:
                each.touch()
            self._run("--rbind", old, each)
            os.close(descriptor)

    def proc(self, visible: str) -> None:
        """Mount /proc anew."""
        self._run("-t", "proc", "-o", f"hidepid={visible}", "proc", "/proc")


_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "shm", "pts")
_TEMPORARY: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - they are hidden
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_API_FILE_SYSTEMS: Final = (Path("/dev"), Path("/proc"), Path("/sys"))


def _mount(unit: Unit, writable: list[Path]) -> None:
    mounts = _Mounts()
    programs = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
    keep = [*writable, *(each.resolve() for each in programs)]
    if unit["PrivateDevices"] == ["yes"]:
        mounts.hide(Path("/dev"), keep=[Path("/dev", name) for name in _DEVICES])
    hidden = {"PrivateTmp": _TEMPORARY, "ProtectHome": _HOMES}
    for name, directories in hidden.items():
        for each in directories if unit[name] == ["yes"] else ():
            mounts.hide(each, keep=keep)
    if unit["ProtectSystem"] == ["strict"]:
        own = [*_TEMPORARY, *_API_FILE_SYSTEMS, *writable]
        mounts.read_only(Path("/"), writable=own)
    mounts.proc(*unit["ProtectProc"])
    if unit["ProtectKernelTunables"] == unit["ProtectControlGroups"] == ["yes"]:
        for each in (Path("/proc/sys"), Path("/sys")):
            mounts.read_only(each, writable=[])


class _Compare(ctypes.Structure):
    """Hold a struct scmp_arg_cmp: one condition on an argument of a system call."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _Filter:
    """Build a seccomp filter.

    Args:
        default: What happens to a system call that no rule matches.
    """

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._lib.seccomp_init(default))

    def rule(self, action: int, call: str, *conditions: tuple[int, ...]) -> None:
        """Add a rule for a system call; unknown names are ignored, as systemd does."""
        number = self._lib.seccomp_syscall_resolve_name(call.encode())
        if number == -1:  # __NR_SCMP_ERROR
            return
        array: Any = (_Compare * len(conditions))(*(_Compare(*c) for c in conditions))
        code = self._lib.seccomp_rule_add_array(
            self._filter, action, number, len(conditions), array
        )
        if code not in {0, -errno.EDOM}:  # not a system call of this architecture
            raise OSError(-code, f"seccomp rule for {call}")

    def load(self) -> None:
        """Let the filter take effect, together with all that were loaded before."""
        code = self._lib.seccomp_load(self._filter)
        if code != 0:
            raise OSError(-code, "seccomp_load")


def _calls_in(names: list[str]) -> set[str]:
    """Return the system calls of sets such as @system-service."""
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\n")
        found |= _calls_in([x.strip() for x in listed[1:] if x[4:5] not in {"", "#"}])
    return found


def _allowed(values: list[str]) -> set[str]:
    """Return the system calls that lines of SystemCallFilter= allow together."""
    calls = _calls_in(["@default"])  # allowed with every list of allowed calls
    for value in values:
        if value.startswith("~"):
            calls -= _calls_in(value[1:].split())
        else:
            calls |= _calls_in(value.split())
    return calls


_CLONE_NEW: Final = (
    *(0x00020000, 0x02000000, 0x04000000, 0x08000000),
    *(0x10000000, 0x20000000, 0x40000000),
)


# Directive → system call and the condition under which it is refused.
_REFUSED: Final = {
    "MemoryDenyWriteExecute": [
        ("mmap", (2, MASKED, 6, 6)),  # PROT_WRITE | PROT_EXEC
        ("mprotect", (2, MASKED, 4, 4)),
        ("pkey_mprotect", (2, MASKED, 4, 4)),
        ("shmat", (2, MASKED, 0o100000, 0o100000)),  # SHM_EXEC
    ],
    "RestrictNamespaces": [
        *(("clone", (0, MASKED, bit, bit)) for bit in _CLONE_NEW),
        *(("unshare", (0, MASKED, bit, bit)) for bit in _CLONE_NEW),
        ("setns", (1, NOT_EQUAL, -1, 0)),
    ],
    "LockPersonality": [("personality", (0, NOT_EQUAL, 0, 0))],
    "RestrictSUIDSGID": [
        (call, (argument, MASKED, bit, bit))
        for call, argument in {"chmod": 1, "fchmod": 1, "fchmodat": 2}.items()
        for bit in (0o4000, 0o2000)
    ],
}


def _seccomp(unit: Unit) -> None:
    no = FAIL | errno.EPERM
    one = _Filter(ALLOW)
    for name, rules in _REFUSED.items():
        for call, condition in rules if unit[name] == ["yes"] else ():
            one.rule(no, call, condition)
    # glibc then uses clone, whose flags a filter can read.
    one.rule(FAIL | errno.ENOSYS, "clone3")
    families = {getattr(socket, x) for x in unit["RestrictAddressFamilies"][0].split()}
    for family in set(range(_MOST_FAMILIES)) - families:
        one.rule(FAIL | errno.EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    one.load()
    rest = _Filter(no)
    for call in _allowed(unit["SystemCallFilter"]):
        rest.rule(ALLOW, call)
    rest.load()


def _drop_capabilities() -> None:
    """Leave no capability after the next exec, which gives root those of this set."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        prctl(_PR_CAPBSET_DROP, capability)


def main() -> None:
    """Apply the directives, then become the command."""
    end = sys.argv.index("--")
    unit = directives(Path(sys.argv[1]))
    _mount(unit, [Path(each) for each in sys.argv[2:end]])
    if unit["CapabilityBoundingSet"] == [""]:
        _drop_capabilities()
    if unit["NoNewPrivileges"] == ["yes"]:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _seccomp(unit)
    os.execv(sys.argv[end + 1], sys.argv[end + 1 :])  # noqa: S606


if __name__ == "__main__":
    main()
