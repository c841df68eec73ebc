"""The keyring on a state directory that is missing, not writable, or damaged."""

from __future__ import annotations

import json

import msgspec
import pytest
from structlog.testing import capture_logs

from hsm_kms.errors import KeyLostError
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.records import MAX_FORMER_KEYS
from tests.unit.keys.key_samples import A, B
from tests.unit.keys.keyring_node import FIRST, NEXT, KeyringNode
from tests.unit.state_dir.state_samples import BEFORE, KEY


@pytest.fixture
def node(tmp_path):
    """A node that has never read a key."""
    return KeyringNode(tmp_path / "state")


def test_directory_missing(tmp_path):
    """A key that cannot be saved is used, and saved once it can be."""
    node = KeyringNode(tmp_path / "no" / "state")
    with capture_logs() as logs:
        node.sees(FIRST).sees(FIRST)
    assert A == node.current
    assert 1 == [log["event"] for log in logs].count("the current key is not saved")

    node.directory.mkdir(mode=0o700, parents=True)
    node.sees(FIRST)
    assert (A, []) == node.kept


def test_not_writable_at_the_switch(node):
    """A switch that could not be saved is saved once it can be."""
    node.sees(FIRST, NEXT).after(10)
    node.directory.chmod(0o777)  # others could change it: it is not used
    node.sees(FIRST, NEXT)
    node.directory.chmod(0o700)
    assert (B, (A, [])) == (node.current, node.kept)

    node.sees(FIRST, NEXT)
    assert (B, (B, [A])) == (node.current, node.kept)


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"version": 2}', '{"version": 1, "former": [{}]}'],
    ids=["empty", "cut", "version 2", "former"],
)
def test_file_damaged(node, damage):
    """Nothing encrypts while the last key is unknown, until `keys.current` decides."""
    node.sees(FIRST)
    node.file.write_text(damage)
    node.serve().sees(FIRST)
    with pytest.raises(KeyLostError, match="is not a state file of version 1"):
        node.keyring.ring.for_encrypt()
    assert FIRST == node.keyring.ring.for_decrypt(A, FIRST.cipher)
    assert damage == node.file.read_text()

    node.serve(current=A).sees(FIRST)
    assert (A, (A, [])) == (node.current, node.kept)
    assert A == node.serve().sees(FIRST).current


def test_file_without_former(node):
    """A file without former keys is read."""
    node.sees(FIRST)
    file = json.loads(node.file.read_text())
    del file["former"]
    node.file.write_text(json.dumps(file))
    node.serve().sees(FIRST, NEXT).after(10).sees(FIRST, NEXT)

    assert (B, [A]) == node.kept


def test_file_removed(node):
    """Without its file a node starts anew; the running process keeps its key."""
    node.sees(FIRST, NEXT)
    node.file.unlink()

    assert A == node.sees(FIRST, NEXT).current
    assert B == node.after(10).serve().sees(FIRST, NEXT).current


def test_many_former_keys(tmp_path):
    """Only the newest former keys are kept, and the file can be read."""
    state = StateDir(tmp_path / "state").open()
    wordy = msgspec.structs.replace(BEFORE, key_id="b" * 26 + "." + "s" * 16)
    state.save_last_key(KEY, (BEFORE, *[wordy] * MAX_FORMER_KEYS))

    assert (wordy,) * MAX_FORMER_KEYS == state.former_keys()
    assert KEY == state.last_key()
