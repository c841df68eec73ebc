"""Print the result of `hsm-kms migrate`, and what is to be done about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from hsm_kms.cli.streams import tell
from hsm_kms.errors import OTHER_SCOPE, HsmKmsError
from hsm_kms.etcd.text import count_of
from hsm_kms.migrate.journal import Outcome
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.migrate.journal import Counts, Journal, Named

_WORDS: Final = {
    Outcome.REWRITTEN: "rewritten",
    Outcome.CHANGED: "rewritten and changed by the cluster",
    Outcome.UP_TO_DATE: "up to date already",
    Outcome.ACCEPTED: "would be accepted, nothing was written",
    Outcome.GONE: "deleted meanwhile",
    Outcome.REFUSED: "refused",
    Outcome.UNREADABLE: "unreadable",
}
_DRY_WORDS: Final = _WORDS | {
    Outcome.CHANGED: "would be changed by the cluster, nothing was written"
}


def print_report(journal: Journal, output: str, *, dry_run: bool) -> None:
    """Print the results for each resource.

    Args:
        journal: The results.
        output: "text" or "json".
        dry_run: True if nothing was written.
    """
    if output == "json":
        shown = {name: _as_json(counts) for name, counts in journal.counts.items()}
        found = {"dry_run": dry_run, "resources": shown, "skipped": journal.skipped}
        click.echo(json.dumps(found))
        return
    some = {name: counts for name, counts in journal.counts.items() if counts.objects}
    for name, counts in (some or journal.counts).items():
        for line in _lines(name, counts, _DRY_WORDS if dry_run else _WORDS):
            click.echo(line)
    for name, reason in journal.skipped.items():
        click.echo(f"{name}: skipped: {reason}")


def _as_json(counts: Counts) -> dict[str, Any]:
    outcomes = {str(outcome): counts.of(outcome) for outcome in Outcome}
    return {
        "objects": counts.objects,
        **outcomes,
        "refusals": msgspec.to_builtins(counts.refusals),
        "changes": msgspec.to_builtins(counts.changes),
    }


def _lines(name: str, counts: Counts, words: dict[Outcome, str]) -> Iterator[str]:
    parts = [
        f"{counts.of(outcome):,} {words[outcome]}"
        for outcome in words
        if counts.of(outcome)
    ]
    summary = f"{name}: {count_of(counts.objects)}"
    yield ": ".join([summary, ", ".join(parts)] if parts else [summary])
    refused, changed = counts.unnamed
    yield from _named(counts.refusals, "", refused)
    yield from _named(counts.changes, "changed: ", changed)


def _named(objects: list[Named], verb: str, more: int) -> Iterator[str]:
    for each in objects:
        yield f"  {each.object}: {verb}{each.reason}"
    if more:
        yield f"  and {more:,} more"


def print_advice(journal: Journal, served: str | None) -> None:
    """Print what to do next, on stderr.

    Args:
        journal: The results.
        served: Version of StorageVersionMigration that the cluster serves, or None.
    """
    if journal.of(Outcome.ACCEPTED):
        advice = ["run `hsm-kms etcd scan` to see which objects are out of date"]
    else:
        advice = ["run `hsm-kms etcd scan` to see what is stored now"]
    if journal.of(Outcome.UP_TO_DATE) and not journal.of(Outcome.REWRITTEN):
        advice.append(
            "nothing was out of date; an API server may use a new key a minute later"
        )
    if served:
        advice.append("this cluster can migrate on its own, see --explain")
    tell(*(f"hint: {each}" for each in advice))


def problems(journal: Journal, *, dry_run: bool, allow_changes: bool) -> None:
    """Raise an error unless every object was re-encrypted, and nothing else.

    Args:
        journal: The results.
        dry_run: True if nothing was written.
        allow_changes: True if the cluster may change objects.

    Raises:
        HsmKmsError: An object was refused, is unreadable or was changed, or a resource
            was skipped.
    """
    found = dict(_problems(journal, dry_run=dry_run, allow_changes=allow_changes))
    if found:
        raise HsmKmsError("; ".join(found), hint="; ".join(found.values()))


def _problems(
    journal: Journal, *, dry_run: bool, allow_changes: bool
) -> Iterator[tuple[str, str]]:
    """Yield cause and cure of each problem."""
    refused = journal.of(Outcome.REFUSED)
    unreadable = journal.of(Outcome.UNREADABLE)
    changed = journal.of(Outcome.CHANGED)
    if refused:
        yield (
            f"{count_of(refused)} refused, and stored as before",
            "remove the cause of the refusals, and run this again",
        )
    if unreadable:
        yield (
            f"{count_of(unreadable)} unreadable, and stored as before",
            _cure_of_unreadable(journal),
        )
    if changed and not allow_changes:
        would = "would be " if dry_run else ""
        yield (
            f"{count_of(changed)} {would}changed by the cluster",
            (
                "a mutating webhook or policy does this when an object is written; "
                "exclude the resource from it, or accept it with --allow-changes"
            ),
        )
    if journal.skipped:
        names = ", ".join(journal.skipped)
        cure = "remove the causes, and run this again for what was skipped"
        yield f"skipped: {names}", cure


def _cure_of_unreadable(journal: Journal) -> str:
    cure = (
        "run `hsm-kms etcd show secrets/NAMESPACE/NAME` to see which key an "
        "unreadable Secret needs; restore that key, or delete the object: see "
        "docs/rotation.md"
    )
    reasons = (
        each.reason for counts in journal.counts.values() for each in counts.refusals
    )
    if not any(CIPHERTEXT_SENTENCE in reason for reason in reasons):
        return cure
    return f"where the ciphertext is not authentic, {OTHER_SCOPE}; otherwise {cure}"
