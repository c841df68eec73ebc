"""Collect the findings of `hsm-kms check` and `hsm-kms probe`, and print them.

1. A finding has the id of its step, which never changes and is documented in
   docs/commands.md. A step can have several findings, or none but a skipped one.
2. A step that cannot run, because another one failed, is skipped and says why.
"""

from __future__ import annotations

import itertools
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from hsm_kms.cli.colour import Tone, coloured
from hsm_kms.cli.hints import leading_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hsm_kms.errors import HsmKmsError


class Outcome(StrEnum):
    """Name what a step found."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


_MARKS: Final = {
    Outcome.OK: "✓",
    Outcome.WARNING: "!",
    Outcome.FAILED: "✗",
    Outcome.SKIPPED: "-",
}
_TONES: Final = {
    Outcome.OK: Tone.GOOD,
    Outcome.WARNING: Tone.DOUBTFUL,
    Outcome.FAILED: Tone.BAD,
    Outcome.SKIPPED: Tone.QUIET,
}
_NOT_DONE: Final = {Outcome.FAILED, Outcome.SKIPPED}


class Finding(msgspec.Struct, frozen=True):
    """Hold what one step found.

    Args:
        id: The step, such as "kms-socket".
        outcome: What it found.
        text: The finding in words; of a failure the cause, of a skipped step why.
        hint: What to do; None if nothing is to be done.
    """

    id: str
    outcome: Outcome
    text: str
    hint: str | None = None


def because(step: str) -> str:
    """Return why a step is skipped: another one failed."""
    return f"the check `{step}` failed"


class Report:
    """Collect findings.

    Args:
        shown: Print each finding as it is made.

    Attributes:
        findings: The findings so far, in order.
    """

    def __init__(self, *, shown: bool = False) -> None:
        self.findings: list[Finding] = []
        self._shown = shown

    def ok(self, step: str, what: str) -> None:
        """Note a requirement that is met."""
        self._add(Finding(step, Outcome.OK, what))

    def warn(self, step: str, what: str, hint: str | None = None) -> None:
        """Note a requirement that is met, with something the operator should know."""
        self._add(Finding(step, Outcome.WARNING, what, hint))

    def fail(self, step: str, what: str, error: HsmKmsError) -> None:
        """Note a requirement that is not met, its cause and its cure.

        Args:
            step: The id of the step.
            what: What the cause is about; the line begins with it.
            error: Cause and cure.
        """
        self._add(Finding(step, Outcome.FAILED, f"{what}: {error}", error.hint))

    def skip(self, steps: Iterable[str], why: str) -> None:
        """Note steps that cannot run, in one line.

        Args:
            steps: Their ids.
            why: Why they cannot run.
        """
        skipped = [Finding(step, Outcome.SKIPPED, why) for step in steps]
        self.findings += skipped
        if self._shown:
            _print_skipped(skipped)

    def take(self, findings: Iterable[Finding]) -> None:
        """Note findings that were made elsewhere, as in another process."""
        for each in findings:
            self._add(each)

    @property
    def failures(self) -> list[Finding]:
        """Return the findings that say that a requirement is not met."""
        return [each for each in self.findings if each.outcome is Outcome.FAILED]

    def missing(self, steps: Iterable[str]) -> str | None:
        """Return the first of these steps that failed or was skipped, or None."""
        bad = {each.id for each in self.findings if each.outcome in _NOT_DONE}
        return next((step for step in steps if step in bad), None)

    def show(self) -> None:
        """Print all findings, unless each was printed as it was made."""
        if self._shown:
            return
        for why, group in itertools.groupby(self.findings, key=_why_skipped):
            if why is not None:
                _print_skipped(list(group))
                continue
            for each in group:
                _print(each)

    def sum_up(self) -> None:
        """Print how many requirements are not met, if any is not."""
        skipped = [each for each in self.findings if each.outcome is Outcome.SKIPPED]
        if failed := len(self.failures):
            rest = f", {len(skipped)} skipped" if skipped else ""
            made = len(self.findings) - len(skipped)
            click.echo(f"{failed} of {made} checks failed{rest}")

    def as_json(self) -> dict[str, Any]:
        """Return the findings for scripts; docs/commands.md describes the members."""
        checks = [
            {
                "id": each.id,
                "outcome": str(each.outcome),
                "text": each.text,
                "hint": leading_on(each.hint),
            }
            for each in self.findings
        ]
        return {"ok": not self.failures, "checks": checks}

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self._shown:
            _print(finding)


def _why_skipped(finding: Finding) -> str | None:
    return finding.text if finding.outcome is Outcome.SKIPPED else None


def _mark(outcome: Outcome) -> str:
    return coloured(_MARKS[outcome], _TONES[outcome])


def _print(finding: Finding) -> None:
    click.echo(f"{_mark(finding.outcome)} {finding.text}")
    if hint := leading_on(finding.hint):
        click.echo(f"  hint: {hint}")


def _print_skipped(skipped: list[Finding]) -> None:
    names = ", ".join(each.id for each in skipped)
    click.echo(f"{_mark(Outcome.SKIPPED)} {names}: skipped: {skipped[0].text}")
