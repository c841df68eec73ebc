"""Tokens with two keys, made once by the commands, and copied."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.keys_rig import Keys
from tests.harness.plugin import beside
from tests.harness.softhsm import SoftHsm

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = {"mechanism": "aes-cbc-hmac-sha256"}


class Stocked(NamedTuple):
    """Two states of one token, and the key_ids on it.

    Args:
        one: The token with the old key alone.
        both: The token with both keys.
        old: What `keys generate` made.
        new: What `keys generate --another` made.
    """

    one: SoftHsm
    both: SoftHsm
    old: str
    new: str


def stocked(hsm: SoftHsm, pin_file: Path, **section: str) -> Stocked:
    """Generate two keys on a token, by a node that is not used again."""
    keys = Keys(beside(hsm, pin_file, token={"shared": True}, keys=section))
    old = keys.generate()
    shutil.copytree(hsm.directory / "tokens", hsm.directory / "one" / "tokens")
    one = SoftHsm(hsm.directory / "one")
    return Stocked(one, hsm, old, keys.generate("--another"))


@pytest.fixture(scope="session")
def aes_keys(
    session_directory: Path, token_template: SoftHsm, pin_file: Path
) -> Stocked:
    """A token with two AES keys."""
    return stocked(token_template.copy(session_directory / "aes-keys"), pin_file)


@pytest.fixture(scope="session")
def pairs_of_keys(
    session_directory: Path, token_template: SoftHsm, pin_file: Path
) -> Stocked:
    """A token with two pairs of an AES key and an HMAC key."""
    return stocked(token_template.copy(session_directory / "pairs"), pin_file, **PAIRS)
