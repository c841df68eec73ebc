"""Provide `hsm-kms keys cancel`: destroy a key that was never used."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.ask import confirm, require_terminal
from hsm_kms.cli.audit import Subject, audited, chosen
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import EtcdChoice, etcd_options
from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.objects import (
    destroy_leftover,
    destroy_objects,
    finish,
    interrupted_work,
)
from hsm_kms.cli.keys.options import (
    Given,
    common_options,
    confirm_key,
    confirm_option,
    yes_option,
)
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.keys.unused import require_live, require_unused
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, spell, when
from hsm_kms.config.formats import KEY_ID
from hsm_kms.errors import HsmKmsError
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.keys.listing import Ask
    from hsm_kms.token.process import Worker

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


@click.command(cls=EtcdCommand)
@click.argument("target", metavar="KEY_ID|CKA_ID", type=_TargetType())
@click.option(
    "--without-scan",
    is_flag=True,
    help="Do not check first that etcd holds nothing under the key; asks for the "
    "key_id.",
)
@confirm_option
@yes_option
@etcd_options
@common_options
def cancel(
    given: Given,
    *,
    target: str,
    without_scan: bool,
    typed: str | None,
    yes: bool,
    etcd: EtcdChoice,
) -> None:
    """Destroy a pending key before its activation time, or half a pair by CKA_ID.

    A pair is an AES key and its HMAC key; half of one is left if a command was
    interrupted. This refuses a key that was ever current on this node: run `keys
    retire` and `keys destroy` for that. If another node may use the key already,
    because token.shared is false or its activation time is less than a minute away,
    etcd is scanned first, or you must give --without-scan and repeat the key_id.

    -o json prints key_id (null for half a pair), cka_id and destroyed (objects).
    """
    require_live(etcd)
    sure = _Sure(etcd=None if without_scan else etcd, typed=typed, yes=yes)
    subject = Subject(
        key_id=target if KEY_ID.fullmatch(target) else None,
        options=chosen({"--without-scan": without_scan}),
    )
    with audited(given.config, "keys cancel", subject):
        shown = asyncio.run(_Cancelling(given, target, sure).run())
    name = shown["key_id"] or f"the HMAC key of CKA_ID {shown['cka_id']}"
    given.show(shown, f"destroyed {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sure:
    """Hold proofs and confirmations by the user.

    Args:
        etcd: The etcd to scan for objects under the key; None to skip the scan.
        typed: The key_id once more; None to ask for it.
        yes: True to ask no question.
    """

    etcd: EtcdChoice | None
    typed: str | None
    yes: bool


class _Cancelling:
    """Run the command."""

    def __init__(self, given: Given, target: str, sure: _Sure) -> None:
        self._given = given
        self._target = target
        self._sure = sure
        self._journal = Journal(given.config)

    async def run(self) -> dict[str, Any]:
        """Destroy the key, and return the result for JSON."""
        config, target = self._given.config, self._target
        async with one_worker(config, self._given.login, read_write=True) as worker:
            ask = ask_of(config, worker)
            with self._journal.alone():
                self._journal.require_memory()
                survey = await read_survey(config, worker)
                found = survey.find(target)
                if found is not None:
                    return await self._key(worker, survey, found)
                work, left = interrupted_work(self._journal, survey, target, "cancel")
                if work is not None:
                    gone = await finish(ask, self._journal, work, left)
                    return _shown(work.key_id, work.cka_id, gone)
                return await self._half(ask, _half(survey, target))

    async def _half(self, ask: Ask, half: KeyRef) -> dict[str, Any]:
        tell(
            f"the HMAC key labelled {half.partner.label!r} (CKA_ID "
            f"{half.cka_id.hex()}) has no AES key: alone it decrypts nothing, but it "
            "is needed if the AES key will be restored from a backup"
        )
        if not self._sure.yes:
            require_terminal("give --yes")
        confirm("destroy this HMAC key?", yes=self._sure.yes)
        await destroy_leftover(ask, self._journal, half)
        return _shown(None, half.cka_id.hex(), 1)

    async def _key(
        self, worker: Worker, survey: Survey, found: Found
    ) -> dict[str, Any]:
        main = survey.main(found)
        key_id = main[0] if main else ""
        _refuse(survey, found, key_id)
        doubt = _doubt(survey, found, key_id)
        sure = self._sure
        by_key_id = sure.typed is not None or bool(doubt and sure.etcd is None)
        if sure.typed is None and (by_key_id or not sure.yes):
            require_terminal("give --confirm KEY_ID" if by_key_id else "give --yes")
        if doubt:
            found = await self._prove(worker, survey, found, key_id, doubt)
        tell(
            f"{key_id} (CKA_ID {found.ref.cka_id.hex()}) will be destroyed. This node "
            "has not used the key. If keys.current of another node names it, data "
            "encrypted with it is lost."
        )
        if by_key_id:
            confirm_key(key_id, sure.typed)
        else:
            confirm("destroy this key?", yes=sure.yes)
        ask = ask_of(self._given.config, worker)
        gone = await destroy_objects(ask, self._journal, found, "cancel", key_id)
        return _shown(key_id, found.ref.cka_id.hex(), gone)

    async def _prove(
        self, worker: Worker, survey: Survey, found: Found, key_id: str, doubt: str
    ) -> Found:
        """Prove that nothing is stored under a key that another node may use.

        Raises:
            HsmKmsError: An object is stored under the key, or no etcd was given.
        """
        etcd = self._sure.etcd
        if etcd is None:
            tell(doubt)
            return found
        if not etcd.named:
            raise HsmKmsError(
                doubt,
                hint="give --endpoints to scan etcd for the key, or --without-scan and "
                "repeat the key_id",
            )
        hint = "check that these objects do not matter, then give --without-scan"
        used = "a node encrypts with it already, so it must not be destroyed: see "
        used += "`hsm-kms status` on each node"
        require_unused(etcd, survey, found, held_hint=used, unreadable_hint=hint)
        # The scan may have taken long, so the token is read and judged again.
        survey = await read_survey(self._given.config, worker)
        found = survey.get(key_id)
        _refuse(survey, found, key_id)
        return found


def _refuse(survey: Survey, found: Found, key_id: str) -> None:
    survey.refuse_in_use(found, key_id)
    if found.relabelled:
        raise HsmKmsError(
            f"{key_id} is retired", hint=f"run `hsm-kms keys destroy {key_id}`"
        )
    if survey.was_current(found):
        raise HsmKmsError(
            f"{key_id} was current on this node: data encrypted with it would be lost",
            hint=_retire(key_id),
        )
    pending = survey.state(found) is KeyState.PENDING
    if not pending and _activation(survey, found) <= now():
        raise HsmKmsError(
            f"{key_id} is not pending: another node may have used it",
            hint=_retire(key_id),
        )


def _retire(key_id: str) -> str:
    return (
        f"run `hsm-kms keys retire {key_id}`, and a day later `hsm-kms keys destroy "
        f"{key_id}`: both check whether anything is stored under it"
    )


def _doubt(survey: Survey, found: Found, key_id: str) -> str:
    """Return why another node may use the key already; "" if none can."""
    if not survey.ring.settings.shared:
        return (
            f"keys.current of another node may name {key_id} already: token.shared is "
            "false, so no activation time says when a node may use it"
        )
    activation = _activation(survey, found)
    left = activation - now()
    if left >= LEAST_SECONDS:
        return ""
    if left > 0:
        return (
            f"{key_id} becomes current at {when(activation)}, in {spell(left)}; a node "
            "whose clock is ahead may use it already"
        )
    return (
        f"the activation time of {key_id}, {when(activation)}, has passed: another "
        "node may have switched to it"
    )


def _activation(survey: Survey, found: Found) -> int:
    key = survey.key(found)
    return key.activation if key else 0


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
