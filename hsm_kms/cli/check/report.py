"""Print the findings of `hsm-kms check`, and count them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.hints import leading_on

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

_MARKS: Final = {"ok": "✓", "warn": "!", "fail": "✗"}


class Report:
    """Print each finding as it is made.

    Attributes:
        checks: Requirements that were looked at.
        failed: Requirements that are not met.
    """

    def __init__(self) -> None:
        self.checks = 0
        self.failed = 0

    def ok(self, what: str) -> None:
        """Print a requirement that is met."""
        self._print("ok", what)

    def warn(self, what: str, hint: str | None = None) -> None:
        """Print a requirement that is met, with something the operator should know."""
        self._print("warn", what, hint)

    def fail(self, what: str, error: HsmKmsError) -> None:
        """Print a requirement that is not met, its cause and its cure."""
        self.failed += 1
        self._print("fail", f"{what}: {error}", error.hint)

    def sum_up(self, skipped: str = "") -> None:
        """Print how many checks failed, if any did.

        Args:
            skipped: What was not looked at; "" if everything was.
        """
        if self.failed:
            rest = f"; {skipped}" if skipped else ""
            click.echo(f"{self.failed} of {self.checks} checks failed{rest}")

    def _print(self, mark: str, what: str, hint: str | None = None) -> None:
        self.checks += 1
        click.echo(f"{_MARKS[mark]} {what}")
        if hint := leading_on(hint):
            click.echo(f"  hint: {hint}")
