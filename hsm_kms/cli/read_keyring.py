"""Read the keyring as this node sees it, with a command's own worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hsm_kms.clock import now
from hsm_kms.errors import HsmKmsError
from hsm_kms.ipc.messages import FindKeys
from hsm_kms.keys.discovery import Discovery
from hsm_kms.keys.key_memory import memory_of
from hsm_kms.keys.rotation import Memory, build_keyring
from hsm_kms.server import settings
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.store import StateCorruptError

if TYPE_CHECKING:
    from hsm_kms.config.schema import Config
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.state_dir.records import LastKey
    from hsm_kms.token.process import Worker

_MOST_LABELS: Final = 16


async def read_ring(config: Config, worker: Worker) -> Keyring:
    """Read the keys, and build the keyring by configuration and state directory.

    Args:
        config: The configuration.
        worker: A worker that is logged in.

    Raises:
        HsmKmsError: The token cannot be read, or no mechanism works.
    """
    listing = await discovery_for(config).read(worker, last_key(config), fresh=True)
    ring = build_keyring(
        listing.keys,
        settings.key_settings(config),
        remembered(config),
        now(),
        unidentified=listing.unidentified,
    )
    if ring.fault is None or ring.keys or ring.unidentified:
        return ring
    return replace(ring, fault=await _with_labels(ring.fault, config, worker))


async def _with_labels(
    fault: HsmKmsError, config: Config, worker: Worker
) -> HsmKmsError:
    """Return why there is no key, with the labels that AES keys on the token have."""
    try:
        page = await worker.ask(
            FindKeys(label=None, limit=_MOST_LABELS), config.token.start_timeout
        )
    except HsmKmsError:
        return fault
    labels = sorted({each.ref.label for each in getattr(page, "keys", ())})
    if not labels:
        return fault
    more = " and others" if getattr(page, "next", None) is not None else ""
    what = f"{fault}; AES keys on it are labelled {', '.join(map(repr, labels))}{more}"
    cure = "correct keys.label or keys.ids"
    if not config.keys.ids:  # else a key that was made now would not be in keys.ids
        cure = f"correct keys.label, or {fault.hint}"
    return type(fault)(what, hint=cure)


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
