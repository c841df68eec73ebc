"""Read the keyring as this node sees it, with a command's own worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.clock import now
from hsm_kms.keys.discovery import Discovery
from hsm_kms.keys.key_memory import memory_of
from hsm_kms.keys.rotation import Memory, build_keyring
from hsm_kms.server import settings
from hsm_kms.state_dir.directory import StateCorruptError, StateDir

if TYPE_CHECKING:
    from hsm_kms.config.schema import Config
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.state_dir.records import LastKey
    from hsm_kms.token.process import Worker


async def read_ring(config: Config, worker: Worker) -> Keyring:
    """Read the keys, and build the keyring by configuration and state directory.

    Args:
        config: The configuration.
        worker: A worker that is logged in.

    Raises:
        HsmKmsError: The token cannot be read, or no mechanism works.
    """
    listing = await discovery_for(config).read(worker, last_key(config), fresh=True)
    return build_keyring(
        listing.keys,
        settings.key_settings(config),
        remembered(config),
        now(),
        unidentified=listing.unidentified,
    )


def last_key(config: Config) -> LastKey | None:
    """Return the key last current on this node; None if there is none, or no file."""
    try:
        return StateDir(config.state_dir).last_key()
    except StateCorruptError:
        return None


def remembered(config: Config) -> Memory:
    """Return what the state directory remembers of keys; nothing if it is corrupt."""
    state = StateDir(config.state_dir)
    try:
        last, former = state.last_key(), state.former_keys()
    except StateCorruptError:
        return Memory()
    return memory_of(last, former)


def discovery_for(config: Config) -> Discovery:
    """Return the discovery for a command, which writes no state."""
    return Discovery(
        settings.key_settings(config),
        StateDir(config.state_dir),
        seconds=config.token.start_timeout,
        start_seconds=config.token.start_timeout,
        freeze=False,
    )
