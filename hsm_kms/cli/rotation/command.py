"""Define `hsm-kms rotation start` and `hsm-kms rotation resume`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.ask import confirm, require_terminal
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import stdin_kept
from hsm_kms.cli.keys.options import yes_option
from hsm_kms.cli.keys.read_survey import survey_of
from hsm_kms.cli.keys.rotate import current_of, require_shared, require_time
from hsm_kms.cli.migrate.options import DEFAULT_RESOURCES
from hsm_kms.cli.options import KEY_ID_TYPE, SECONDS_TYPE
from hsm_kms.cli.rotation.journal import JournalFile, Rotation
from hsm_kms.cli.rotation.methods import MIGRATE
from hsm_kms.cli.rotation.node_steps import Switch
from hsm_kms.cli.rotation.options import rotation_options
from hsm_kms.cli.rotation.run import Run
from hsm_kms.cli.rotation.steps import STEP_NAMES
from hsm_kms.cli.rotation.world import Means, World
from hsm_kms.clock import now, when
from hsm_kms.errors import ConfigError, HsmKmsError

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Survey


@click.command(cls=EtcdCommand)
@click.option(
    "--activate-in",
    "seconds",
    type=SECONDS_TYPE,
    default="10m",
    show_default=True,
    help="Time until the new key becomes current; every node must see it before.",
)
@click.option("--force", is_flag=True, help="Allow less than 2m for --activate-in.")
@click.option(
    "--old",
    "old",
    metavar="KEY_ID",
    type=KEY_ID_TYPE,
    help="The key to replace, if the nodes have switched already.  [default: the "
    "current key]",
)
@click.option(
    "--abandon",
    is_flag=True,
    help="Set the journal of an unfinished rotation aside; its keys stay as they are.",
)
@yes_option
@rotation_options
def start(  # noqa: PLR0913 - one per option
    *,
    means: Means,
    file: JournalFile,
    nodes: list[str],
    names: tuple[str, ...],
    method: str | None,
    seconds: float,
    old: str | None,
    abandon: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Replace the current key: generate, re-encrypt, verify and retire.

    Generates the next key, or takes the one that is pending; waits until every node
    uses it; re-encrypts what is stored under the old key; scans etcd; has the token
    decrypt every wrapped key in etcd; retires the old key; and waits until no node
    decrypts with it. Destroys nothing. Unless options say otherwise, secrets are
    re-encrypted, as by `hsm-kms migrate`.

    A journal in the state directory says what was done, when and by whom. If this is
    interrupted at any point, `hsm-kms rotation resume` continues. All nodes must share
    the token (token.shared): see docs/rotation.md.
    """
    require_shared(means.given.config)
    require_time(seconds, force=means.force)
    if not nodes:
        raise ConfigError(["no node: name every node of the cluster with --node"])
    if not (yes or dry_run):
        require_terminal("give --yes")
    with stdin_kept(means.etcd) as etcd:
        means = dataclasses.replace(means, etcd=etcd)
        survey = survey_of(means.given)
        rotation = Rotation(
            began=when(now()),
            old_key=_old_key(survey, old),
            nodes=nodes,
            method=method or MIGRATE,
            resources=list(names or DEFAULT_RESOURCES),
            activate_in=seconds,
        )
        run = Run(file, World(means, rotation, survey))
        if dry_run:
            run.plan()
            click.echo("nothing was changed")
            return
        with file.alone():
            before = file.load()
            if before and not before.finished and not abandon:
                raise HsmKmsError(
                    f"the rotation that began at {before.began} is not finished",
                    hint="run `hsm-kms rotation resume`; --abandon sets its journal "
                    "aside",
                )
            run.plan()
            confirm("start this rotation?", yes=yes)
            if before:
                file.set_aside(before)
            rotation.tell("start")
            run.run()


def _old_key(survey: Survey, key_id: str | None) -> str:
    """Return the key_id of the key to replace.

    Raises:
        HsmKmsError: There is no such key.
    """
    if key_id is None:
        return current_of(survey).key_id
    main = survey.main(survey.get(key_id))
    return main[0] if main else key_id


@click.command(cls=EtcdCommand)
@rotation_options
def resume(
    *,
    means: Means,
    file: JournalFile,
    nodes: list[str],
    names: tuple[str, ...],
    method: str | None,
    dry_run: bool,
) -> None:
    """Continue a rotation that was interrupted or has stopped.

    Each step finds out by itself whether it is done, so nothing is done twice. The
    journal says which nodes, resources and method were chosen; options change that.
    Credentials for etcd and the API server are not in the journal: give yours. With
    --journal, another node that shares the token can continue with a copy of the file.
    """
    require_shared(means.given.config)
    with stdin_kept(means.etcd) as etcd:
        means = dataclasses.replace(means, etcd=etcd)
        if dry_run:
            rotation = _loaded(file, nodes, names, method)
            Run(file, World(means, rotation)).plan()
            click.echo("nothing was changed")
            return
        with file.alone():
            rotation = _loaded(file, nodes, names, method)
            if rotation.finished:
                click.echo(f"this rotation was finished at {rotation.finished}")
                return
            rotation.tell("resume")
            Run(file, World(means, rotation), again="run this again").run()


def _loaded(
    file: JournalFile, nodes: list[str], names: tuple[str, ...], method: str | None
) -> Rotation:
    """Return the rotation of the journal, with what the options change.

    Raises:
        HsmKmsError: There is no journal.
    """
    rotation = file.load()
    if rotation is None:
        raise HsmKmsError(
            f"there is no rotation to resume: {file.path} does not exist",
            hint="run `hsm-kms rotation start`, or name the journal with --journal",
        )
    if set(nodes) - set(rotation.nodes):
        # Nobody has seen since when the other nodes use the new key, and `settle`
        # counts from there.
        rotation.undo(STEP_NAMES[STEP_NAMES.index(Switch.name) :])
    rotation.nodes = nodes or rotation.nodes
    rotation.resources = list(names) or rotation.resources
    rotation.method = method or rotation.method
    return rotation
