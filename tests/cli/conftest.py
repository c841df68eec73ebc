"""Tokens with two keys, made once by the commands, and copied."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.keys_rig import Keys
from tests.harness.plugin import Plugin, beside
from tests.harness.softhsm import PIN, SoftHsm

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = 10001  # the service's user on the pages, who owns nothing here
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


@pytest.fixture
def of_another_user(
    make_plugin: Callable[..., Plugin], hsm: SoftHsm, directory: Path
) -> Plugin:
    """A node whose files belong to the service's user, who can run Python."""
    if os.geteuid() != 0:
        pytest.skip("only root may chown")
    own = directory / "pin"
    own.touch(mode=0o400)
    own.write_text(PIN)
    plugin = make_plugin(hsm, token={"pin_file": str(own)})
    directory.chmod(0o755)
    for path in (own, plugin.state_dir, plugin.directory):
        os.chown(path, SERVICE, SERVICE)
    return plugin


@pytest.fixture
def open_checkout() -> None:
    """Skip a test that runs hsm-kms as another user, where that cannot work."""
    for folder in Path(__file__).resolve().parents:
        if os.geteuid() == 0 and not folder.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"no other user can enter {folder}: clone to another directory")
