"""Provide `hsm-kms keys destroy`: permanently delete a key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.ask import require_terminal
from hsm_kms.cli.audit import Subject, audited, chosen
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import EtcdChoice, etcd_options
from hsm_kms.cli.keys.journal import Journal
from hsm_kms.cli.keys.objects import destroy_objects, finish, interrupted_work
from hsm_kms.cli.keys.options import (
    Given,
    common_options,
    confirm_key,
    confirm_option,
    key_id_argument,
)
from hsm_kms.cli.keys.read_survey import ask_of, read_survey
from hsm_kms.cli.keys.unused import require_live, require_unused
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, when
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import KeyState
from hsm_kms.state_dir.directory import StateDir

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.config.schema import Config
    from hsm_kms.token.process import Worker

RETIRED_SECONDS: Final = 86400.0


@click.command(cls=EtcdCommand)
@key_id_argument
@click.option(
    "--backups-expired",
    is_flag=True,
    help="Confirm that no backup of etcd, nor of objects, still needs the key.",
)
@click.option(
    "--ignore-unreadable",
    is_flag=True,
    help="Confirm that no value in etcd that cannot be parsed needs the key.",
)
@confirm_option
@etcd_options
@common_options
def destroy(
    given: Given,
    *,
    key_id: str,
    backups_expired: bool,
    ignore_unreadable: bool,
    typed: str | None,
    etcd: EtcdChoice,
) -> None:
    """Permanently delete a retired key. It cannot be restored.

    The key must have been retired for 24 hours, a scan of the running etcd must find
    no object stored under it, and you must give --backups-expired and repeat the
    key_id.

    -o json prints key_id, cka_id, destroyed (number of objects on the token) and
    scanned (number of objects in etcd; null if this only destroyed the leftovers of
    an interrupted run).
    """
    _refuse_choice(etcd)
    if typed not in {None, key_id}:
        raise ConfigError(["--confirm names another key_id"])
    sure = _Sure(typed=typed, expired=backups_expired, unreadable=ignore_unreadable)
    options = chosen(
        {
            "--backups-expired": backups_expired,
            "--ignore-unreadable": ignore_unreadable,
        }
    )
    subject = Subject(key_id=key_id, options=options)
    with audited(given.config, "keys destroy", subject):
        shown = asyncio.run(_Destroying(given, key_id, etcd, sure).run())
    given.show(shown, f"destroyed {key_id}")


def _refuse_choice(etcd: EtcdChoice) -> None:
    require_live(etcd)
    if not etcd.named:
        raise ConfigError(
            ["no etcd endpoint: give --endpoints, or set ETCDCTL_ENDPOINTS"]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sure:
    """Hold the confirmations by the user.

    Args:
        typed: The key_id once more; None to ask for it.
        expired: No backup needs the key.
        unreadable: No value that cannot be parsed needs the key.
    """

    typed: str | None
    expired: bool
    unreadable: bool


class _Destroying:
    """Run the command."""

    def __init__(
        self, given: Given, key_id: str, etcd: EtcdChoice, sure: _Sure
    ) -> None:
        self._given = given
        self._key_id = key_id
        self._etcd = etcd
        self._sure = sure
        self._journal = Journal(given.config)

    async def run(self) -> dict[str, Any]:
        """Destroy the key, and return the result for JSON."""
        config = self._given.config
        async with one_worker(config, self._given.login, read_write=True) as worker:
            with self._journal.alone():
                self._journal.require_memory()
                survey = await read_survey(config, worker)
                found = survey.find(self._key_id)
                if found is None:
                    return await self._rest(worker, survey)
                return await self._whole(worker, survey, found)

    async def _rest(self, worker: Worker, survey: Survey) -> dict[str, Any]:
        work, left = interrupted_work(self._journal, survey, self._key_id, "destroy")
        if work is None:
            survey.get(self._key_id)
            raise AssertionError("get found what find did not")
        ask = ask_of(self._given.config, worker)
        gone = await finish(ask, self._journal, work, left)
        self._journal.forget_retired({fingerprint_in(self._key_id)})
        return self._shown(work.cka_id, gone, None)

    async def _whole(
        self, worker: Worker, survey: Survey, found: Found
    ) -> dict[str, Any]:
        config, key_id = self._given.config, self._key_id
        tell(
            _last_use(config, found, key_id),
            "older snapshots of etcd, and other backups that need the key, become "
            "permanently unreadable",
        )
        self._refuse(survey, found)
        if self._sure.typed is None:
            require_terminal("give --confirm KEY_ID")
        hint = "give --ignore-unreadable to destroy the key anyway"
        scanned = require_unused(
            self._etcd,
            survey,
            found,
            unreadable_hint="" if self._sure.unreadable else hint,
        )
        # The scan may have taken long, so the token is read and judged again.
        survey = await read_survey(config, worker)
        found = survey.get(key_id)
        self._refuse(survey, found)
        confirm_key(key_id, self._sure.typed)
        ask = ask_of(config, worker)
        gone = await destroy_objects(ask, self._journal, found, "destroy", key_id)
        self._journal.forget_retired(set(found.names.values()))
        return self._shown(found.ref.cka_id.hex(), gone, scanned)

    def _refuse(self, survey: Survey, found: Found) -> None:
        key_id = self._key_id
        survey.refuse_in_use(found, key_id)
        if survey.ring.current is None:
            raise survey.ring.fault or HsmKmsError("there is no current key")
        if survey.state(found) is not KeyState.RETIRED:
            raise HsmKmsError(
                f"{key_id} is not retired",
                hint=f"run `hsm-kms keys retire {key_id}`, and run this 24 hours later",
            )
        since = found.retired_since
        if since is None:
            since = self._journal.retired_since(set(found.names.values()))
        if since is None:
            raise HsmKmsError(
                f"this node does not know when {key_id} was retired",
                hint=f"run `hsm-kms keys retire {key_id}` to record the time, and run "
                "this 24 hours later",
            )
        if now() < since + RETIRED_SECONDS:
            raise HsmKmsError(
                f"{key_id} was retired at {when(since)}, less than 24 hours ago",
                hint=f"run this after {when(since + RETIRED_SECONDS)}",
            )
        if not self._sure.expired:
            raise HsmKmsError(
                "backups may still need the key",
                hint="give --backups-expired when no backup needs the key any more",
            )

    def _shown(self, cka_id: str, gone: int, scanned: int | None) -> dict[str, Any]:
        return {
            "key_id": self._key_id,
            "cka_id": cka_id,
            "destroyed": gone,
            "scanned": scanned,
        }


def _last_use(config: Config, found: Found, key_id: str) -> str:
    """Say when this node last encrypted with a key, as far as it remembers."""
    former = StateDir(config.state_dir).former_keys()
    names = set(found.names.values())
    until = [each.until for each in former if fingerprint_in(each.key_id) in names]
    if not until:
        return f"this node does not know when {key_id} was last used"
    return f"{key_id} was last used on this node at {until[-1]}"
