"""Read everything on the token that belongs to the configured keys."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from hsm_kms.cli.keys.survey import RETIRED, Found, Survey
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.read_keyring import read_ring, remembered
from hsm_kms.errors import HsmKmsError, KeyAmbiguousError, MechanismError, TokenError
from hsm_kms.ipc.ckr import Fault
from hsm_kms.ipc.messages import FindKeys
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.keyring import Keyring
from hsm_kms.keys.listing import list_keys
from hsm_kms.keys.policy import violations
from hsm_kms.server.settings import key_settings
from hsm_kms.token.errors import error_from

if TYPE_CHECKING:
    from hsm_kms.cli.keys.options import Given
    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.listing import Ask
    from hsm_kms.keys.token_key import KeySettings
    from hsm_kms.token.process import Worker


def ask_of(config: Config, worker: Worker) -> Ask:
    """Return the function that asks a worker, with `start_timeout` for each request."""
    return partial(worker.ask, seconds=config.token.start_timeout)


def survey_of(given: Given) -> Survey:
    """Read everything with a worker that does nothing else.

    Args:
        given: Configuration and login.

    Raises:
        HsmKmsError: The token could not be read.
    """

    async def read() -> Survey:
        async with one_worker(given.config, given.login) as worker:
            return await read_survey(given.config, worker)

    return asyncio.run(read())


async def read_survey(config: Config, worker: Worker) -> Survey:
    """Read everything on the token that belongs to the configured keys.

    Args:
        config: The configuration.
        worker: A worker that is logged in.

    Raises:
        HsmKmsError: The token could not be read.
    """
    ask = ask_of(config, worker)
    settings = key_settings(config)
    live = await list_keys(ask, FindKeys(label=settings.label, ids=settings.ids))
    retired = await _retired(ask, settings)
    macs = await _macs(ask, settings)
    error: HsmKmsError | None = None
    try:
        ring = await read_ring(config, worker)
    except (MechanismError, KeyAmbiguousError, TokenError) as caught:
        error = caught
        ring = Keyring(keys=(), current=None, fault=caught, settings=settings)
    found = [_known(seen, ring, settings) for seen in live]
    found += [_retired_key(seen, settings) for seen in retired]
    taken = {each.beside for each in found}
    return Survey(
        ring=ring,
        error=error,
        memory=remembered(config),
        found=tuple(sorted(found, key=_order)),
        loose=tuple(ref for ref in macs if ref not in taken),
    )


def _order(found: Found) -> tuple[bool, int, str]:
    activation = max((key.activation for key in found.keys), default=0)
    return found.relabelled, activation, found.ref.cka_id.hex()


async def _retired(ask: Ask, settings: KeySettings) -> tuple[KeySeen, ...]:
    if settings.label is None:
        return ()  # without a configured label, no key can be retired by its label
    return await list_keys(
        ask,
        FindKeys(
            label=settings.label + RETIRED,
            ids=settings.ids,
            prefix=True,
            partner_label=settings.label,
        ),
    )


async def _macs(ask: Ask, settings: KeySettings) -> tuple[KeyRef, ...]:
    """Return the names of the AES keys to which the HMAC keys on the token belong."""
    label = settings.label
    ids = tuple(KeyRef("", each).partner.cka_id for each in settings.ids)
    if label is None:
        seen = await list_keys(ask, FindKeys(label=None, ids=ids, partners=True))
    else:
        partner = KeyRef(label, b"").partner.label
        live = FindKeys(label=partner, ids=ids, partners=True)
        retired = FindKeys(label=label + RETIRED, ids=ids, prefix=True, partners=True)
        seen = await list_keys(ask, live) + await list_keys(ask, retired)
    refs = [(_owner(each.ref), each.ref) for each in seen]
    # An HMAC key whose names do not end like a partner's belongs to no key of ours.
    return tuple(owner for owner, own in refs if owner.partner == own)


def _owner(own: KeyRef) -> KeyRef:
    """Return the AES key to which an HMAC key with these names belongs."""
    nobody = KeyRef("", b"").partner
    return KeyRef(
        own.label.removesuffix(nobody.label), own.cka_id.removesuffix(nobody.cka_id)
    )


def _known(seen: KeySeen, ring: Keyring, settings: KeySettings) -> Found:
    names = _names(seen)
    keys = tuple(
        key
        for key in ring.keys
        if key.ref == seen.ref and names.get(key.cipher) == key.fingerprint
    )
    return Found(
        seen=seen,
        beside=seen.ref if seen.partner else None,
        names=names if keys else {},
        keys=keys,
        problem="" if keys else _problem(seen, settings),
    )


def _retired_key(seen: KeySeen, settings: KeySettings) -> Found:
    names = _names(seen)
    return Found(
        seen=seen,
        # The HMAC key may still have the label of before.
        beside=_owner(seen.partner.ref) if seen.partner else None,
        names=names,
        relabelled=True,
        problem="" if names else _problem(seen, settings),
    )


def _names(seen: KeySeen) -> dict[Cipher, str]:
    pair = seen.partner.fingerprint if seen.partner else None
    names = {Cipher.GCM: seen.fingerprint, Cipher.CBC_HMAC: pair}
    return {cipher: name for cipher, name in names.items() if name is not None}


def _problem(seen: KeySeen, settings: KeySettings) -> str:
    """Return why a key could not be identified."""
    against = violations(seen, Cipher.GCM, settings)
    if seen.problem is None:
        return ", ".join(against) or "the key could not be identified"
    if against and seen.problem.cause == Fault.OPERATOR:
        return ", ".join(against)
    return error_from(seen.problem).sentence
