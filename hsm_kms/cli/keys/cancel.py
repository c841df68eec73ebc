"""Provide `hsm-kms keys cancel`: destroy a key that was never used."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.objects import (
    destroy_objects,
    destroy_rest,
    finish,
    interrupted_work,
)
from hsm_kms.cli.keys.options import (
    Given,
    common_options,
    confirm,
    require_terminal,
    spell,
    tell,
    yes_option,
)
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.clock import now, when
from hsm_kms.config.formats import KEY_ID
from hsm_kms.errors import HsmKmsError
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.keys.listing import Ask

LEAST_SECONDS: Final = 60.0
_CKA_ID: Final = re.compile("([0-9a-fA-F]{2})+")


class _TargetType(click.ParamType[str]):
    name = "target"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the key_id or CKA_ID unchanged."""
        if not KEY_ID.fullmatch(value) and not _CKA_ID.fullmatch(value):
            self.fail(f"{value!r} is neither a key_id nor a CKA_ID", param, ctx)
        return str(value)


@click.command()
@click.argument("target", metavar="KEY_ID|CKA_ID", type=_TargetType())
@click.option(
    "--force",
    is_flag=True,
    help="Allow it in the last minute before the activation time.",
)
@yes_option
@common_options
def cancel(given: Given, *, target: str, force: bool, yes: bool) -> None:
    """Destroy a pending key before its activation time, or half a pair by CKA_ID.

    A pair is an AES key and its HMAC key; half of one is left if a command was
    interrupted. This refuses a key that was ever current on this node, or that
    another node may use by now: run `keys retire` and `keys destroy` for that.

    -o json prints key_id (null for half a pair), cka_id and destroyed (objects).
    """
    if not yes:
        require_terminal("give --yes")
    shown = asyncio.run(_cancel(given, target, force=force, yes=yes))
    name = shown["key_id"] or f"the HMAC key of CKA_ID {shown['cka_id']}"
    given.show(shown, f"destroyed {name}")


async def _cancel(
    given: Given, target: str, *, force: bool, yes: bool
) -> dict[str, Any]:
    config, journal = given.config, Journal(given.config)
    async with one_worker(config, given.login, read_write=True) as worker:
        ask = ask_of(config, worker)
        with journal.alone():
            journal.require_memory()
            survey = await read_survey(config, worker)
            found = survey.find(target)
            if found is not None:
                return await _key(ask, journal, survey, found, force=force, yes=yes)
            work, left = interrupted_work(journal, survey, target, "cancel")
            if work is not None:
                gone = await finish(ask, journal, work, left)
                return _shown(work.key_id, work.cka_id, gone)
            half = _half(survey, target)
            tell(
                f"the HMAC key labelled {half.partner.label!r} has no AES key beside "
                f"it (CKA_ID {half.cka_id.hex()}): "
                "alone it decrypts nothing, but it is "
                "needed if the AES key will be restored from a backup"
            )
            confirm("destroy this HMAC key?", yes=yes)
            await destroy_rest(ask, journal, half)
            return _shown(None, half.cka_id.hex(), 1)


async def _key(
    ask: Ask,
    journal: Journal,
    survey: Survey,
    found: Found,
    *,
    force: bool,
    yes: bool,
) -> dict[str, Any]:
    main = survey.main(found)
    key_id = main[0] if main else ""
    _refuse(survey, found, key_id, force=force)
    tell(
        f"{key_id} (CKA_ID {found.ref.cka_id.hex()}) will be destroyed. This node has "
        "not used the key. If another node has, data encrypted with it is lost."
    )
    confirm("destroy this key?", yes=yes)
    gone = await destroy_objects(ask, journal, found, "cancel", key_id)
    return _shown(key_id, found.ref.cka_id.hex(), gone)


def _refuse(survey: Survey, found: Found, key_id: str, *, force: bool) -> None:
    if survey.is_in_use(found) or survey.was_current(found):
        raise HsmKmsError(
            f"{key_id} is or was current on this node: data encrypted with it would "
            "be lost",
            hint="run `hsm-kms keys retire`; see its --help",
        )
    key, shared = survey.key(found), survey.ring.settings.shared
    activation = key.activation if key else 0
    never_by_time = not shared and survey.state(found) is KeyState.PENDING
    if found.relabelled or not (activation > now() or never_by_time):
        raise HsmKmsError(
            f"{key_id} is not pending: another node may have used it",
            hint="run `hsm-kms keys retire`, then `hsm-kms keys destroy`: both check "
            "whether anything is stored under it",
        )
    left = activation - now()
    if shared and left < LEAST_SECONDS and not force:
        raise HsmKmsError(
            f"{key_id} becomes current at {when(activation)}, in {spell(left)}; by the "
            "clock of another node perhaps already",
            hint="wait and retire it later, or destroy it now with --force",
        )


def _half(survey: Survey, target: str) -> KeyRef:
    """Return the missing AES key of an HMAC key, by the CKA_ID of either.

    Raises:
        HsmKmsError: The token has no such half of a pair.
    """
    wanted = target.lower()
    for ref in survey.loose:
        if wanted in {ref.cka_id.hex(), ref.partner.cka_id.hex()}:
            return ref
    if survey.error is not None:
        raise survey.error
    for found in survey.found:
        main = survey.main(found)
        if found.ref.cka_id.hex() == wanted and main is not None:
            raise HsmKmsError(
                f"CKA_ID {wanted} is a complete key, {main[0]}",
                hint="give its key_id",
            )
    raise HsmKmsError(
        f"{target} is neither a pending key nor half of a pair",
        hint="run `hsm-kms keys list`",
    )


def _shown(key_id: str | None, cka_id: str, gone: int) -> dict[str, Any]:
    return {"key_id": key_id, "cka_id": cka_id, "destroyed": gone}
