"""Provide `hsm-kms keys retire`: stop every node from decrypting with a key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from hsm_kms.cli.ask import confirm, require_terminal
from hsm_kms.cli.audit import Subject, audited, chosen
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import EtcdChoice, etcd_options
from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.options import (
    Given,
    common_options,
    key_id_argument,
    yes_option,
)
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.keys.survey import retired_label, time_in
from hsm_kms.cli.keys.unused import require_unused
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, spell, when
from hsm_kms.errors import ConfigError, HsmKmsError, MechanismError
from hsm_kms.ipc.messages import Relabel
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.inventory import MISSES_BELIEVED
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.keys.listing import Ask
    from hsm_kms.token.process import Worker


@click.command(cls=EtcdCommand)
@key_id_argument
@click.option(
    "--undo", "back", is_flag=True, help="Restore the label of a retired key."
)
@click.option(
    "--without-scan",
    is_flag=True,
    help="Do not check first that etcd holds nothing under the key.",
)
@yes_option
@etcd_options
@common_options
def retire(
    given: Given,
    *,
    key_id: str,
    back: bool,
    without_scan: bool,
    yes: bool,
    etcd: EtcdChoice,
) -> None:
    """Stop every node from decrypting with a key that is no longer used.

    Changes the label of the key to LABEL/retired/TIME, so that no node finds the key.
    If the token does not allow a label to change, prints the line for keys.retired
    instead. Scans etcd first, and refuses if any object is stored under the key. The
    key stays on the token until `keys destroy`; until then --undo restores it.

    -o json prints key_id, cka_id, label, retired_since (RFC 3339; null after --undo)
    and keys_retired (what keys.retired must list; null if nothing).
    """
    if back:
        subject = Subject(key_id=key_id, options=("--undo",))
        with audited(given.config, "keys retire", subject):
            shown = asyncio.run(_undo(given, key_id))
        given.show(*shown)
        return
    if not without_scan and not etcd.named:
        raise ConfigError(
            ["no etcd endpoint: give --endpoints, or --without-scan to skip the scan"]
        )
    choice = None if without_scan else etcd
    given.show(*asyncio.run(Retiring(given, key_id, choice, yes=yes).run()))


class Retiring:
    """Retire a key.

    Args:
        given: Configuration and login.
        key_id: The key.
        etcd: The etcd that must not need the key; None to skip the scan.
        yes: True to ask no question.
    """

    def __init__(
        self, given: Given, key_id: str, etcd: EtcdChoice | None, *, yes: bool
    ) -> None:
        self._given = given
        self._key_id = key_id
        self._etcd = etcd
        self._yes = yes
        self._journal = Journal(given.config)

    async def run(self) -> tuple[Any, ...]:
        """Retire the key, or finish what an interrupted run began.

        Returns:
            The result as JSON, and lines of text.

        Raises:
            HsmKmsError: The key is in use, or the token refuses.
        """
        options = chosen({"--without-scan": self._etcd is None})
        subject = Subject(key_id=self._key_id, options=options)
        with audited(self._given.config, "keys retire", subject):
            return await self._run()

    async def _run(self) -> tuple[Any, ...]:
        config = self._given.config
        async with one_worker(config, self._given.login, read_write=True) as worker:
            with self._journal.alone():
                self._journal.require_memory()
                survey = await read_survey(config, worker)
                found = survey.get(self._key_id)
                if found.half_retired:
                    return await self._finish(ask_of(config, worker), found)
                if found.relabelled:
                    return self._already(found)
                return await self._retire(worker, survey, found)

    async def _finish(self, ask: Ask, found: Found) -> tuple[Any, ...]:
        tell(
            "an earlier run was interrupted before it changed the HMAC key's label; "
            "changing it now"
        )
        await _relabel_partner(ask, found, found.ref.label)
        return self._already(found)

    def _already(self, found: Found) -> tuple[Any, ...]:
        since = found.retired_since
        if since is None:  # another tool has changed the label
            since = self._recorded(set(found.names.values()))
        shown = _shown(self._key_id, found.ref, since)
        return shown, f"{self._key_id} has been retired since {when(since)}"

    async def _retire(
        self, worker: Worker, survey: Survey, found: Found
    ) -> tuple[Any, ...]:
        config = self._given.config
        _refuse(survey, found, self._key_id)
        if not self._yes:
            require_terminal("give --yes")
        if self._etcd is not None:
            require_unused(self._etcd, survey, found)
            # The scan may have taken long, so the token is read and judged again.
            survey = await read_survey(config, worker)
            found = survey.get(self._key_id)
            _refuse(survey, found, self._key_id)
        delay = spell(MISSES_BELIEVED * config.keys.discover)
        where = "every node" if config.token.shared else "this node, and no other,"
        tell(
            f"within {delay} {where} will refuse to decrypt what "
            f"{self._key_id} encrypted"
        )
        confirm("retire this key?", yes=self._yes)
        label = survey.ring.settings.label
        if label is None:
            return self._by_configuration(found, "keys.label is null")
        seconds = now()
        try:
            await _relabel(ask_of(config, worker), found, retired_label(label, seconds))
        except MechanismError as error:
            if error.function != "C_SetAttributeValue":
                raise
            return self._by_configuration(found, str(error))
        tell(
            f"hint: `hsm-kms keys retire --undo {self._key_id}` reverts this; from "
            f"{when(seconds + 86400)} on `hsm-kms keys destroy` can delete the key"
        )
        ref = KeyRef(retired_label(label, seconds), found.ref.cka_id)
        shown = _shown(self._key_id, ref, time_in(ref.label))
        return shown, f"retired {self._key_id}: its label is {ref.label!r}"

    def _recorded(self, names: set[str]) -> float:
        """Return since when the journal has the key as retired: from now on, if not.

        Args:
            names: All fingerprints of the key.
        """
        since = self._journal.retired_since(names)
        if since is None:
            self._journal.retire(self._key_id)
            since = now()
        return since

    def _by_configuration(self, found: Found, why: str) -> tuple[Any, ...]:
        """Retire the key by keys.retired, on a token where labels cannot change."""
        config, names = self._given.config, set(found.names.values())
        since = self._recorded(names)
        listed = {fingerprint_in(each) for each in config.keys.retired}
        wanted = [*config.keys.retired, *sorted(names - listed)]
        shown = _shown(self._key_id, found.ref, since, wanted)
        if not names - listed:
            return shown, f"{self._key_id} has been retired since {when(since)}"
        tell(
            f"the key cannot be retired by its label: {why}",
            "hint: add this to the configuration of every node"
            + (
                "; keep its id in keys.ids until it is destroyed"
                * bool(config.keys.ids)
            ),
        )
        return shown, "keys:", f"  retired: [{', '.join(wanted)}]"


async def _relabel(ask: Ask, found: Found, label: str) -> None:
    """Change the label of the AES key first: that alone retires the key."""
    await ask(Relabel(ref=found.ref, label=label, fingerprint=found.fingerprint))
    await _relabel_partner(ask, found, label)


async def _relabel_partner(ask: Ask, found: Found, label: str) -> None:
    if found.beside is None:
        return
    try:
        await ask(Relabel(ref=found.beside, label=label, partner=True))
    except MechanismError as error:
        tell(f"the label of the HMAC key is unchanged, which does no harm: {error}")


async def _undo(given: Given, key_id: str) -> tuple[Any, ...]:
    """Restore the label of a key, and forget that it was retired.

    Returns:
        The result as JSON, and lines of text.

    Raises:
        HsmKmsError: The key is not retired, or the token refuses.
    """
    config, journal = given.config, Journal(given.config)
    async with one_worker(config, given.login, read_write=True) as worker:
        with journal.alone():
            survey = await read_survey(config, worker)
            found = survey.get(key_id)
            label = survey.ring.settings.label
            if found.relabelled and label is not None:
                await _label_again(ask_of(config, worker), found, label)
                done = f"{key_id} has its label {label!r} again"
            else:
                _require_retired(survey, found, key_id)
                done = f"{key_id} is no longer recorded as retired"
            journal.forget_retired(set(found.names.values()))
    listed = survey.ring.settings.retired & set(found.names.values())
    if listed:
        tell(
            f"hint: remove {', '.join(sorted(listed))} from keys.retired on every node"
        )
    shown = {
        "key_id": key_id,
        "cka_id": found.ref.cka_id.hex(),
        "label": label if found.relabelled else found.ref.label,
        "retired_since": None,
        "keys_retired": None,
    }
    return shown, done


def _require_retired(survey: Survey, found: Found, key_id: str) -> None:
    if survey.state(found) is not KeyState.RETIRED:
        raise HsmKmsError(f"{key_id} is not retired", hint="run `hsm-kms keys list`")


async def _label_again(ask: Ask, found: Found, label: str) -> None:
    """Change the label of the HMAC key first: the AES key alone would be incomplete."""
    if found.beside is not None and not found.half_retired:
        await ask(Relabel(ref=found.beside, label=label, partner=True))
    await ask(Relabel(ref=found.ref, label=label, fingerprint=found.fingerprint))


def _refuse(survey: Survey, found: Found, key_id: str) -> None:
    ring = survey.ring
    survey.refuse_in_use(found, key_id)
    if ring.current is None:
        raise ring.fault or HsmKmsError("there is no current key")
    if survey.state(found) is KeyState.PENDING:
        raise HsmKmsError(
            f"{key_id} is pending",
            hint=f"run `hsm-kms keys cancel {key_id}` to destroy it",
        )


def _shown(
    key_id: str, ref: KeyRef, since: float | None, wanted: list[str] | None = None
) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "cka_id": ref.cka_id.hex(),
        "label": ref.label,
        "retired_since": None if since is None else when(since),
        "keys_retired": wanted,
    }
