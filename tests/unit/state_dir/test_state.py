"""Test what the state directory keeps, and how it handles corrupt files."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_kms.state_dir.directory import (
    PinIdentity,
    PinRecord,
    StateDir,
)
from hsm_kms.state_dir.store import StateCorruptError
from tests.harness.wait import wait_for
from tests.unit.state_dir.state_samples import BEFORE, KEY, PIN, REJECTED


@pytest.fixture
def state(tmp_path):
    """Return a new state directory."""
    return StateDir(tmp_path / "state").open()


def last_key_file(state):
    return state.path / "last-key.json"


def pin_file(state):
    return state.path / "pin.json"


def names(state):
    return sorted(path.name for path in state.path.iterdir())


def test_made(state):
    """A missing directory is created with mode 0700, and no record is in it."""
    assert state.writable
    assert state.problem is None
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert names(state) == []
    assert state.last_key() is None
    assert PinRecord(identity=PIN, verdict="untried", tries=0) == state.read_pin(PIN)


def test_last_key(state):
    """The next process reads the last key, from a file of mode 0600."""
    state.save_last_key(KEY)

    assert StateDir(state.path).last_key() == KEY
    assert stat.S_IMODE(last_key_file(state).stat().st_mode) == 0o600
    assert names(state) == ["last-key.json"]
    assert {
        "version": 1,
        "last_key": msgspec.to_builtins(KEY),
        "former": [],
    } == json.loads(last_key_file(state).read_text())


def test_replaced(state):
    """A later key replaces the earlier key."""
    later = msgspec.structs.replace(KEY, label="other")
    state.save_last_key(KEY)
    state.save_last_key(later)

    assert later == state.last_key()


def test_former_keys(state):
    """The file also lists the keys that were current before, the oldest first."""
    later = msgspec.structs.replace(BEFORE, key_id="a" * 26)
    assert () == state.former_keys()
    state.save_last_key(KEY, (BEFORE, later))

    assert (BEFORE, later) == StateDir(state.path).former_keys()
    assert StateDir(state.path).last_key() == KEY


def test_always_whole(state):
    """While a file is replaced, a reader never finds it missing or half-written."""
    state.save_last_key(KEY)
    done = threading.Event()

    def write():
        for number in range(200):
            label = "x" * (number * 10)
            state.save_last_key(msgspec.structs.replace(KEY, label=label))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert KEY.key_id == StateDir(state.path).last_key().key_id
    writer.join()


def test_refuses_to_store_corruption(state):
    """A record that would read as corrupt raises an error and is not written."""
    with pytest.raises(msgspec.ValidationError):
        state.save_last_key(msgspec.structs.replace(KEY, key_id="no key_id"))

    assert names(state) == []


def test_pin_identity(tmp_path):
    """The identity of a PIN file changes when the file is written, not when read."""
    file = tmp_path / "pin"
    file.write_text("123456")
    before = PinIdentity.from_stat(file.stat())
    file.read_text()
    assert before == PinIdentity.from_stat(file.stat())

    def changed():
        file.write_text("654321")
        return before != PinIdentity.from_stat(file.stat())

    wait_for(changed)  # the kernel's clock for files ticks every few milliseconds


def test_pin(state):
    """The next process reads the verdict on a PIN; another PIN is untried."""
    state.write_pin(REJECTED)
    changed = msgspec.structs.replace(PIN, mtime_ns=5)

    assert StateDir(state.path).read_pin(PIN) == REJECTED
    assert PinRecord(identity=changed) == state.read_pin(changed)


def test_pin_changed(state):
    """The record of a PIN file's new content replaces the record of the old one."""
    proven = PinRecord(
        identity=msgspec.structs.replace(PIN, mtime_ns=5), verdict="proven", tries=1
    )
    state.write_pin(REJECTED)
    state.write_pin(proven)

    assert proven == state.read_pin(proven.identity)
    assert state.read_pin(PIN).verdict == "untried"


def test_pins_of_two_files(state):
    """The verdict on one PIN file is kept when another file's verdict is saved."""
    other = PinRecord(identity=msgspec.structs.replace(PIN, inode=9), verdict="proven")
    state.write_pin(REJECTED)
    state.write_pin(other)

    assert (REJECTED, other) == (state.read_pin(PIN), state.read_pin(other.identity))


def test_many_pins(state):
    """Only the 16 newest verdicts are kept."""
    for inode in range(20):
        identity = msgspec.structs.replace(PIN, inode=inode)
        state.write_pin(msgspec.structs.replace(REJECTED, identity=identity))

    verdicts = [
        state.read_pin(msgspec.structs.replace(PIN, inode=inode)).verdict
        for inode in range(20)
    ]
    assert verdicts == ["untried"] * 4 + ["rejected"] * 16


def test_forget_pin(state):
    """Forgetting one PIN leaves the records of other PINs unchanged."""
    other = msgspec.structs.replace(
        REJECTED, identity=msgspec.structs.replace(PIN, inode=9)
    )
    state.write_pin(REJECTED)
    state.write_pin(other)
    state.forget_pin(PIN)

    assert state.read_pin(PIN).verdict == "untried"
    assert other == state.read_pin(other.identity)


def test_corrupt_is_no_verdict(state):
    """The verdict "corrupt" is never stored."""
    with pytest.raises(ValueError, match="corrupt is not a verdict to store"):
        state.write_pin(PinRecord(identity=PIN, verdict="corrupt"))


def good(**changes):
    last_key = {**msgspec.to_builtins(KEY), **changes}
    return json.dumps({"version": 1, "last_key": last_key}).encode()


CORRUPT = {
    "empty": b"",
    "no-json": b"{",
    "not-utf-8": b'{"version": 1, "last_key": "\xff"}',
    "half": good()[:60],
    "trailing": good() + b"{}",
    "list": b"[]",
    "null": b"null",
    "no-version": b'{"last_key": {}, "pins": []}',
    "version-2": good().replace(b'"version": 1', b'"version": 2'),
    "version-text": good().replace(b'"version": 1', b'"version": "1"'),
    "type": good(label=1),
    "key-id": good(key_id="ABC"),
    "key-id-newline": good(key_id=KEY.key_id + "\n"),
    "cka-id": good(cka_id="abc"),
    "unknown-field": good(extra=1),
    "former": good().replace(b"}}", b'}, "former": [{"key_id": "ABC"}]}'),
    "too-long": good() + b" " * (1 << 18),
    "deep": b"[" * 60_000,
    "zeros": bytes(200),
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_corrupt(state, data):
    """A corrupt file raises StateCorruptError; it does not count as missing."""
    last_key_file(state).write_bytes(data)
    with pytest.raises(StateCorruptError):
        state.former_keys()
    with pytest.raises(StateCorruptError) as caught:
        state.last_key()
    assert str(last_key_file(state)) in str(caught.value)
    assert caught.value.hint is not None

    state.save_last_key(KEY)
    assert state.last_key() == KEY


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_pin(state, data):
    """While pin.json is corrupt, no PIN may be tried, and no verdict is overwritten."""
    pin_file(state).write_bytes(data)
    assert PinRecord(identity=PIN, verdict="corrupt") == state.read_pin(PIN)
    with pytest.raises(StateCorruptError):
        state.write_pin(REJECTED)
    assert data == pin_file(state).read_bytes()

    state.forget_pin(PIN)
    assert state.read_pin(PIN).verdict == "untried"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from(["version", "pins"]),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["version", "pins", "last_key"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_content(state, data):
    """Any content of a state file either loads or raises StateCorruptError."""
    last_key_file(state).write_bytes(data)
    pin_file(state).write_bytes(data)

    with pytest.raises(StateCorruptError):
        state.last_key()
    assert state.read_pin(PIN).verdict in {"corrupt", "untried"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("x")])
def test_no_regular_file(state, make):
    """A FIFO, a directory or a link in place of a file is corrupt; no read blocks."""
    make(last_key_file(state))
    with pytest.raises(StateCorruptError):
        state.last_key()


def hold_lock(path, locked, release):
    with StateDir(path).pin_lock() as held:
        assert held
        locked.set()
        release.wait()


def test_pin_lock(state):
    """One process at a time holds the lock; when the process ends, another can."""
    context = multiprocessing.get_context("spawn")
    locked, release = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(state.path, locked, release))
    holder.start()
    assert locked.wait(30)
    with state.pin_lock() as held:
        assert not held

    holder.kill()
    with state.pin_lock(nonblocking=False) as held:
        assert held
        # A second holder in the same process has to wait too.
        with state.pin_lock() as again:
            assert not again
    with state.pin_lock() as held:
        assert held
    holder.join()
