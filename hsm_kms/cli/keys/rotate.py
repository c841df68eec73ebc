"""Provide `hsm-kms keys rotate`: generate the key that every node switches to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from hsm_kms.cli.audit import audited
from hsm_kms.cli.hints import with_config
from hsm_kms.cli.keys.generate import find_made, pending_of
from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.objects import (
    clear_leftovers,
    free_time,
    label_for_new,
    make_key,
)
from hsm_kms.cli.keys.options import Given, common_options
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.options import SECONDS_TYPE
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, spell, when
from hsm_kms.config.formats import format_duration
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.config.schema import Config
    from hsm_kms.keys.token_key import TokenKey

LEAST_SECONDS: Final = 120.0
MOST_SECONDS: Final = 366 * 86400.0


@click.command()
@click.option(
    "--activate-in",
    "seconds",
    type=SECONDS_TYPE,
    default="10m",
    show_default=True,
    help="Time until the key becomes current; every node must see it before.",
)
@click.option(
    "--force", is_flag=True, help="Allow less than 2m, and a second pending key."
)
@common_options
def rotate(given: Given, *, seconds: float, force: bool) -> None:
    """Generate the next key; every node switches to it at its activation time.

    The activation time is part of the CKA_ID. Each node finds the key before that
    time, so that it can decrypt what other nodes encrypt with it. All nodes must
    share the token (token.shared); if they do not, this says what to do instead.

    -o json prints key_id, cka_id, activation (seconds since 1970), activation_time
    (RFC 3339), and replaces (key_id).
    """
    require_time(seconds, force=force)
    require_shared(given.config)
    next_key = asyncio.run(generate_next(given, seconds=seconds, force=force))
    key_id, before = next_key.key_id, next_key.before
    cka_id, at = next_key.cka_id.hex(), when(next_key.activation)
    given.show(
        {
            "key_id": key_id,
            "cka_id": cka_id,
            "activation": next_key.activation,
            "activation_time": at,
            "replaces": before,
        },
        f"generated {key_id} (CKA_ID {cka_id})",
        f"it becomes current on every node at {at}, in {spell(seconds)}",
    )
    require_pending(next_key.survey, next_key.made, key_id)
    if not given.as_json:
        _tell_what_now(before, key_id)


class NextKey(NamedTuple):
    """Describe a key that was just generated.

    Args:
        key_id: Its key_id.
        cka_id: Its CKA_ID.
        activation: When it becomes current, in seconds since the Unix epoch.
        before: key_id of the current key, which it will replace.
        made: The key on the token.
        survey: The token with the key.
    """

    key_id: str
    cka_id: bytes
    activation: int
    before: str
    made: Found
    survey: Survey


def require_time(seconds: float, *, force: bool) -> None:
    """Refuse a time in which not every node may find the new key.

    Args:
        seconds: Time until the key becomes current, in seconds.
        force: Allow a short time.

    Raises:
        HsmKmsError: The time is too short, or too long.
    """
    if seconds > MOST_SECONDS:
        raise ConfigError(["--activate-in must be at most 366d"])
    if seconds < LEAST_SECONDS and not force:
        least = format_duration(LEAST_SECONDS)
        raise HsmKmsError(
            f"in less than {least} some nodes may not have found the key, and could "
            "not decrypt what other nodes encrypt with it",
            hint="give a longer --activate-in, or --force to do it anyway",
        )


def require_shared(config: Config) -> None:
    """Refuse a configuration by which the nodes do not switch at an activation time.

    Raises:
        HsmKmsError: The nodes have separate tokens, or a key is named as current.
    """
    if not config.token.shared:
        raise HsmKmsError(
            "token.shared is false: nodes with separate tokens do not find the new key "
            "on their own, so they cannot switch to it at the same time",
            hint="run `hsm-kms keys generate --another`, copy the key to the token of "
            "every node, then set keys.current on each node (docs/rotation.md); if "
            "all nodes use this token, set token.shared: true",
        )
    if config.keys.current is not None:
        raise HsmKmsError(
            f"keys.current names {config.keys.current}, so activation times are "
            "ignored",
            hint="remove keys.current from the configuration of every node, or run "
            "`hsm-kms keys generate --another` and name the new key in keys.current",
        )


async def generate_next(given: Given, *, seconds: float, force: bool) -> NextKey:
    """Generate the key that replaces the current one.

    Args:
        given: Configuration and login.
        seconds: Time until the key becomes current, in seconds.
        force: Generate a second pending key, too.

    Raises:
        HsmKmsError: Another key is pending, or the token refuses.
    """
    with audited(given.config, "keys rotate") as subject:
        made = await _generate_next(given, seconds=seconds, force=force)
        subject.key_id = made.key_id
    return made


async def _generate_next(given: Given, *, seconds: float, force: bool) -> NextKey:
    config = given.config
    label = label_for_new(config)
    journal = Journal(config)
    async with one_worker(config, given.login, read_write=True) as worker:
        ask = ask_of(config, worker)
        with journal.alone():
            survey = await read_survey(config, worker)
            activation = free_time(survey, now() + seconds)
            before = current_of(survey)
            _refuse_order(survey, before, activation, force=force)
            await clear_leftovers(ask, journal, survey)
            ref = await make_key(ask, journal, survey, label, activation)
        survey = await read_survey(config, worker)
    made, key_id = find_made(survey, ref)
    return NextKey(key_id, ref.cka_id, activation, before.key_id, made, survey)


def current_of(survey: Survey) -> TokenKey:
    """Return the current key, which the new key will replace; it may have a fault.

    Raises:
        HsmKmsError: There is no current key.
    """
    if survey.ring.current is not None:
        return survey.ring.current
    raise survey.ring.fault or HsmKmsError("there is no current key")


def _refuse_order(
    survey: Survey, before: TokenKey, activation: int, *, force: bool
) -> None:
    if before.activation >= activation:
        raise HsmKmsError(
            f"the activation time of the current key, {when(before.activation)}, is "
            "not before that of the new key",
            hint="check whether the clock of this node is right",
        )
    pending = [each for each in survey.ring.pending if each.at is not None]
    if pending and not force:
        key_id, at = pending[0].key.key_id, pending[0].at
        raise HsmKmsError(
            f"{key_id} is already pending, until {when(at or 0)}",
            hint=f"run `hsm-kms keys cancel {key_id}` to destroy it, or give --force "
            "to generate another key",
        )


def require_pending(survey: Survey, made: Found, key_id: str) -> None:
    """Refuse a new key that will not become current by itself.

    Raises:
        HsmKmsError: The token or the policy keeps it from that.
    """
    if pending_of(survey, made) or survey.state(made) is KeyState.CURRENT:
        return
    key = survey.key(made)
    why = ", ".join(key.violations) if key else made.problem
    if key is not None and not key.born_here:
        why = "the token does not report that it generated the key (CKA_LOCAL)"
    raise HsmKmsError(
        f"{key_id} will not become current at its activation time: "
        f"{why or 'it is refused'}",
        hint=f"run `hsm-kms keys cancel {key_id}` to destroy it; on such a token a key "
        "becomes current only if keys.current names it, and needs keys.foreign: "
        "decrypt on every node",
    )


def _tell_what_now(old: str, new: str) -> None:
    tell(
        f"until then {old} encrypts, and "
        + with_config(f"`hsm-kms keys cancel {new}` reverses this"),
        "after that time, run in this order:",
        "  hsm-kms status             on each node: key_id must be the new key_id",
        "  hsm-kms migrate            re-encrypts the objects stored under the old key",
        f"  hsm-kms keys retire {old}",
        f"  hsm-kms keys destroy {old}  a day later, when old backups have expired",
    )
