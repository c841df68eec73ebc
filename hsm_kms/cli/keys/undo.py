"""`hsm-kms keys retire --undo`: a retired key gets its label back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.options import Given, tell
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.errors import HsmKmsError
from hsm_kms.ipc.messages import Relabel
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.keys.listing import Ask


async def undo(given: Given, key_id: str) -> tuple[Any, ...]:
    """Give a key back its label, and forget that it was retired.

    Returns:
        The result as JSON, and lines of text.

    Raises:
        HsmKmsError: It is not retired, or the token does not do it.
    """
    config, journal = given.config, Journal(given.config)
    async with one_worker(config, given.login, read_write=True) as worker:
        with journal.alone():
            survey = await read_survey(config, worker)
            found = survey.get(key_id)
            label = survey.ring.settings.label
            if found.relabelled and label is not None:
                await _relabel(ask_of(config, worker), found, label)
                done = f"{key_id} has its label {label!r} back"
            else:
                _refuse(survey, found, key_id)
                done = f"{key_id} is noted as retired no more"
            journal.forget_retired(set(found.names.values()))
    listed = survey.ring.settings.retired & set(found.names.values())
    if listed:
        tell(
            f"hint: take {', '.join(sorted(listed))} out of keys.retired on every node"
        )
    shown = {
        "key_id": key_id,
        "cka_id": found.ref.cka_id.hex(),
        "label": label if found.relabelled else found.ref.label,
        "retired_since": None,
        "keys_retired": None,
    }
    return shown, done


def _refuse(survey: Survey, found: Found, key_id: str) -> None:
    if survey.state(found) is not KeyState.RETIRED:
        raise HsmKmsError(f"{key_id} is not retired", hint="see `hsm-kms keys list`")


async def _relabel(ask: Ask, found: Found, label: str) -> None:
    """The HMAC key first: the AES key then finds it in its place."""
    if found.beside is not None and not found.half_retired:
        await ask(Relabel(ref=found.beside, label=label, partner=True))
    await ask(Relabel(ref=KeyRef(found.ref.label, found.ref.cka_id), label=label))
