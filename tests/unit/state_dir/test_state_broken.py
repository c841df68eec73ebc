"""Test a state directory that is missing, foreign, read-only or full."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hsm_kms.state_dir.directory import (
    PinRecord,
    StateDir,
)
from hsm_kms.state_dir.store import (
    StateCorruptError,
    StateWriteError,
)
from tests.unit.state_dir.state_samples import KEY, PIN, REJECTED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path):
    """Return a new state directory."""
    return StateDir(tmp_path / "state").open()


def names(state):
    return sorted(path.name for path in state.path.iterdir())


def test_parent_missing(tmp_path):
    """If the parent directory is missing, `problem` says so and no record is known."""
    state = StateDir(tmp_path / "no" / "state").open()

    assert not state.writable
    assert (
        f"the state directory {state.path} cannot be used: No such file or directory; "
        f"as root, run: install -d -m 0700 -o {os.geteuid()} -g {os.getegid()} "
        f"{state.path}" == state.problem
    )
    assert_useless(state)


def assert_useless(state):
    """Assert that no record is known and each write raises StateWriteError."""
    assert state.last_key() is None
    assert state.read_pin(PIN).verdict == "untried"
    for write in (
        lambda: state.save_last_key(KEY),
        lambda: state.write_pin(REJECTED),
        lambda: state.forget_pin(PIN),
    ):
        with pytest.raises(StateWriteError, match="cannot be used"):
            write()
        assert not state.writable


@pytest.mark.parametrize("make", [Path.touch, lambda p: p.symlink_to("nowhere")])
def test_no_directory(tmp_path, make):
    """If the path is a file or a dangling link, `problem` says so."""
    make(tmp_path / "state")
    state = StateDir(tmp_path / "state").open()

    assert not state.writable
    assert_useless(state)
    with pytest.raises(StateWriteError), state.pin_lock():
        pass


def test_not_opened(tmp_path):
    """Before `open`, the directory does not count as writable."""
    assert not StateDir(tmp_path).writable


@pytest.mark.parametrize("mode", [0o770, 0o1777])
def test_writable_by_others(state, mode):
    """A directory that other users can write to is not used."""
    state.path.chmod(mode)

    assert "other users can write to it" in state.open().problem
    with pytest.raises(StateWriteError):
        state.save_last_key(KEY)
    with pytest.raises(StateCorruptError):  # it would keep what it cannot believe
        state.write_pin(REJECTED)
    assert mode == stat.S_IMODE(state.path.stat().st_mode)


def test_not_believed(state):
    """Files in a directory that other users can write to are not believed.

    Nor is their absence: another user may have removed them.
    """
    state.save_last_key(KEY)
    state.write_pin(PinRecord(identity=PIN, verdict="proven"))
    state.path.chmod(0o770)

    for read in (
        state.last_key,
        state.former_keys,
        state.nonces,
        state.key_work,
        state.frozen_mechanism,
    ):
        with pytest.raises(StateCorruptError, match="other users can write to it"):
            read()
    assert "corrupt" == state.read_pin(PIN).verdict

    state.path.chmod(0o700)
    assert KEY == state.last_key()
    assert "proven" == state.read_pin(PIN).verdict


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_owned_by_another(state):
    """A directory that another user owns is not used."""
    os.chown(state.path, 12345, 12345)

    assert "user 12345 owns it" in state.open().problem


def test_no_files_there():
    """If no file can be created, `problem` says so, even for root."""
    state = StateDir(Path("/proc/self")).open()

    assert not state.writable
    assert_useless(state)


def test_removed_while_running(state):
    """The next write notices that the directory has gone, or is back."""
    state.path.rmdir()
    assert_useless(state)

    state.path.mkdir(mode=0o700)
    state.save_last_key(KEY)
    assert state.writable


def test_stale_files(state):
    """Old temporary files of crashed writers are removed, new ones are kept."""
    old, young, foreign = (
        state.path / name
        for name in (".hsm-kms-1.tmp", ".hsm-kms-2.tmp", "another.tmp")
    )
    for path in (old, young, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (0, 0))
    state.open()

    assert [young.name, foreign.name] == names(state)


CHILD = """
import json, resource, subprocess, sys
from pathlib import Path
import msgspec
from tests.unit.state_dir.state_samples import KEY, PIN, REJECTED
from hsm_kms.state_dir.directory import (PinRecord, StateDir,)
from hsm_kms.state_dir.store import (StateCorruptError, StateWriteError,)

def attempt(write):
    try:
        write()
    except StateWriteError as error:
        return str(error)
    return "written"

state = StateDir(Path(sys.argv[1])).open()
assert state.problem is None, state.problem
state.save_last_key(KEY)
state.write_pin(REJECTED)
with state.pin_lock() as held:
    assert held
BREAK
label = msgspec.structs.replace(KEY, label="x" * 4000)
again = StateDir(state.path).open()
with again.pin_lock() as held:
    pass
print(json.dumps({
    "save": attempt(lambda: state.save_last_key(label)),
    "pin": attempt(lambda: state.write_pin(REJECTED)),
    "writable": [state.writable, again.writable],
    "held": held,
    "kept": [again.last_key() == KEY, again.read_pin(PIN) == REJECTED],
    "left": sorted(p.name for p in state.path.iterdir() if p.suffix == ".tmp"),
}))
"""


def run_child(path, trouble, *, prefix=()):
    """Return what a child process reports when the directory breaks as it runs."""
    code = CHILD.replace("BREAK", trouble)
    child = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def assert_broken(found, reason):
    sentence = f"cannot be used: {reason}"
    assert found["save"].endswith(sentence)
    assert found["pin"].endswith(sentence)
    assert found["writable"] == [False, False]
    assert found["kept"] == [True, True]
    assert found["left"] == []
    assert found["held"]


@pytest.fixture
def namespace():
    """Return a command prefix that makes a mount namespace, or skip the test."""
    prefix = ["unshare", "--mount"]
    if os.geteuid() != 0:
        prefix.append("--map-root-user")
    probe = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    return prefix


def mounted(namespace, size):
    """Return a prefix that also mounts a small file system at the child's directory."""
    mount = f'mount -t tmpfs -o size={size},mode=0700 tmpfs "$4" && exec "$@"'
    return [*namespace, "sh", "-c", mount, "sh"]


def test_read_only(state, namespace):
    """On a read-only file system every record is still read, and writes fail."""
    trouble = textwrap.dedent("""
        remount = ["mount", "-o", "remount,bind,ro", state.path]
        subprocess.run(remount, check=True)
    """)
    found = run_child(state.path, trouble, prefix=mounted(namespace, "1m"))

    assert_broken(found, "Read-only file system")


def test_full(state, namespace):
    """On a full file system the old content is unchanged, and writes fail."""
    trouble = textwrap.dedent("""
        try:
            (state.path / "filler").write_bytes(bytes(1 << 20))
        except OSError:
            pass
    """)
    found = run_child(state.path, trouble, prefix=mounted(namespace, "64k"))

    assert_broken(found, "No space left on device")


def test_no_room_for_files(state):
    """If a process reaches its file size limit, the old content is unchanged."""
    trouble = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    found = run_child(state.path, trouble)

    assert_broken(found, "File too large")
