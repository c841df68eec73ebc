"""Provide `hsm-kms rotation status`: which step is done, and what comes next."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from hsm_kms.cli.columns import aligned
from hsm_kms.cli.hints import with_config
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.rotation.journal import journal_file, journal_option
from hsm_kms.cli.rotation.steps import RESUME, STEP_NAMES
from hsm_kms.clock import when
from hsm_kms.config import load as configuration

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.cli.rotation.journal import Rotation

_NONE, _RUNNING, _STOPPED, _FINISHED = "none", "running", "stopped", "finished"
_COLUMNS: Final = ("STEP", "STATE", "SINCE", "WHAT")


class _Line(NamedTuple):
    step: str
    state: str
    since: str | None
    text: str


@click.command()
@journal_option
@config_option
@output_option
def status(*, path: Path, journal: Path | None, output: str) -> None:
    """Show which step of the rotation is done, and what comes next.

    Reads the journal alone: neither token nor cluster. Exits with 1 if the rotation
    has stopped and must be resumed, with 0 if it runs, is finished, or there is none.

    -o json prints state (none, running, stopped or finished), old_key, new_key,
    activation_time, began, finished, stopped (why), next, steps (step, state, since,
    text) and events (at, by, what).
    """
    file = journal_file(configuration.load(path), journal)
    rotation = file.load()
    if rotation is None:
        state = _NONE
    elif rotation.finished:
        state = _FINISHED
    else:
        state = _RUNNING if file.in_use() else _STOPPED
    if output == "json":
        click.echo(json.dumps(_as_json(rotation, state)))
    elif rotation is None:
        click.echo(f"no rotation has begun: {file.path} does not exist")
    else:
        _print(rotation, state)
    sys.exit(1 if state == _STOPPED else 0)


def _print(rotation: Rotation, state: str) -> None:
    by = rotation.events[0].by if rotation.events else "somebody"
    click.echo(f"rotation: {state}, began at {rotation.began} by {by}")
    click.echo(f"old key: {rotation.old_key}")
    click.echo(f"new key: {rotation.new_key or '-'}")
    click.echo()
    rows = [
        (each.step, each.state, each.since or "-", each.text or "-")
        for each in _lines(rotation, state)
    ]
    for line in aligned([_COLUMNS, *rows]):
        click.echo(line)
    click.echo()
    if state == _STOPPED:
        last = rotation.events[-1].at if rotation.events else rotation.began
        click.echo(f"stopped at {last}: {rotation.stopped or 'killed'}")
    click.echo(f"next: {with_config(_next(rotation, state))}")


def _lines(rotation: Rotation, state: str) -> list[_Line]:
    """Return one line for each step."""
    lines = []
    for name in STEP_NAMES:
        record = rotation.steps.get(name)
        if record is None:
            lines.append(_Line(name, "to do", None, ""))
        elif record.done is None:
            lines.append(_Line(name, state, record.began, ""))
        else:
            lines.append(_Line(name, "done", record.done, record.text))
    return lines


def _next(rotation: Rotation | None, state: str) -> str:
    if rotation is None:
        return "run `hsm-kms rotation start`"
    if state == _FINISHED:
        return (
            f"nothing; `hsm-kms keys retire --undo {rotation.old_key}` reverts the "
            "last step"
        )
    left = [each.step for each in _lines(rotation, state) if each.state != "done"]
    step = left[0] if left else STEP_NAMES[-1]
    if state == _STOPPED:
        return f"{RESUME}, which continues with {step}"
    after = f", then {left[1]}" if len(left) > 1 else ""
    return f"wait for {step}{after}"


def _as_json(rotation: Rotation | None, state: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": state, "next": _next(rotation, state)}
    if rotation is None:
        return shown
    at = rotation.activation
    return shown | {
        "old_key": rotation.old_key,
        "new_key": rotation.new_key,
        "activation_time": None if at is None else when(at),
        "began": rotation.began,
        "finished": rotation.finished,
        "stopped": (rotation.stopped or "killed") if state == _STOPPED else None,
        "steps": [each._asdict() for each in _lines(rotation, state)],
        "events": [
            {"at": each.at, "by": each.by, "what": each.what}
            for each in rotation.events
        ],
    }
