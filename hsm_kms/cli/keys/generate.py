"""Provide `hsm-kms keys generate`: generate a key that is active at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.audit import audited
from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.objects import (
    clear_leftovers,
    does_gcm,
    free_time,
    label_for_new,
    make_key,
)
from hsm_kms.cli.keys.options import Given, common_options
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, when
from hsm_kms.errors import HsmKmsError, MechanismError
from hsm_kms.ipc.messages import GenerateKey
from hsm_kms.keys.keyring import (
    FOREIGN,
    FOREIGN_HINT,
    KeyState,
)
from hsm_kms.keys.policy import born_here

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.keys.keyring import Pending
    from hsm_kms.keys.listing import Ask


@click.command()
@click.option(
    "--another", is_flag=True, help="Generate a key even if the token has one already."
)
@common_options
def generate(given: Given, *, another: bool) -> None:
    """Generate an AES-256 key on the token, with the configured label.

    The key is sensitive, never extractable, and active at once. If several keys have
    the label, keys.current must name the one to encrypt with. If token.shared is
    true, run `keys rotate` instead to replace a key.

    -o json prints key_id and cka_id.
    """
    with audited(given.config, "keys generate") as subject:
        ref, survey = asyncio.run(_generate(given, another=another))
        made, key_id = find_made(survey, ref)
        subject.key_id = key_id
    cka_id = ref.cka_id.hex()
    given.show(
        {"key_id": key_id, "cka_id": cka_id}, f"generated {key_id} (CKA_ID {cka_id})"
    )
    if not given.as_json:
        _tell_what_now(survey, made)


def find_made(survey: Survey, ref: KeyRef) -> tuple[Found, str]:
    """Return a key that was just generated, and its key_id.

    Raises:
        HsmKmsError: The token does not show the key, or the key cannot be identified.
    """
    for found in survey.found:
        main = survey.main(found)
        if found.ref == ref and main is not None:
            return found, main[0]
    if survey.error is not None:
        raise survey.error
    raise HsmKmsError(
        f"the token generated a key (CKA_ID {ref.cka_id.hex()}) but does not list it",
        hint="run `hsm-kms keys list`",
    )


def pending_of(survey: Survey, found: Found) -> Pending | None:
    """Return when a key will become current, or None if it is not pending."""
    for each in survey.ring.pending:
        if found.is_key(each.key):
            return each
    return None


def _tell_what_now(survey: Survey, made: Found) -> None:
    pending = pending_of(survey, made)
    if pending is not None and pending.at is not None:
        tell(
            f"hint: the key becomes current at {when(pending.at)}, also on nodes that "
            "have not found it by then; `hsm-kms keys rotate` gives them time"
        )
    elif survey.state(made) is not KeyState.CURRENT:
        tell("hint: set keys.current to the key_id to encrypt with")
    if survey.state(made) is KeyState.FOREIGN:
        tell(f"{FOREIGN}; hint: {FOREIGN_HINT}")


async def _generate(given: Given, *, another: bool) -> tuple[KeyRef, Survey]:
    config = given.config
    label = label_for_new(config)
    journal = Journal(config)
    async with one_worker(config, given.login, read_write=True) as worker:
        ask = ask_of(config, worker)
        with journal.alone():
            survey = await read_survey(config, worker)
            if survey.error is not None:
                ref = await _finish_pair(ask, survey, survey.error)
            else:
                _refuse_second(survey, label, another=another)
                await clear_leftovers(ask, journal, survey)
                ref = await make_key(
                    ask, journal, survey, label, free_time(survey, now())
                )
        return ref, await read_survey(config, worker)


def _refuse_second(survey: Survey, label: str, *, another: bool) -> None:
    keys = [main[0] for found in survey.found if (main := survey.main(found))]
    if survey.ring.keys and not another:
        hint = "to add a key, give --another, and name one of them in keys.current"
        if survey.ring.settings.shared:
            hint = "run `hsm-kms keys rotate` to generate the next key, or give "
            hint += "--another for a key that is active at once"
        raise HsmKmsError(
            f"the token already has a key labelled {label!r}: {keys[0]}", hint=hint
        )


async def _finish_pair(ask: Ask, survey: Survey, error: HsmKmsError) -> KeyRef:
    """Generate the HMAC key that the only AES key lacks.

    An earlier run was interrupted after it had generated the AES key and had found that
    the token does not support AES-GCM with it. Nothing was ever wrapped under that key.
    """
    live = [each for each in survey.found if not each.relabelled]
    if len(live) != 1 or live[0].beside or not isinstance(error, MechanismError):
        raise error
    found = live[0]
    settings = survey.ring.settings
    if await does_gcm(ask, found.ref, settings):
        raise error
    what = f"the AES key with CKA_ID {found.ref.cka_id.hex()} has no HMAC key beside it"
    if survey.memory.last is not None or not born_here(found.seen):
        raise HsmKmsError(
            what,
            hint="no interrupted run left this: restore the HMAC key, or remove the "
            "AES key with the HSM's own tools",
        )
    tell(f"{what}: an earlier run was interrupted; generating the HMAC key now")
    await ask(GenerateKey(ref=found.ref, partner=True, private=settings.private))
    return found.ref
