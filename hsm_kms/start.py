"""Start `hsm-kms`: harden the process before anything else is imported."""

from __future__ import annotations

from hsm_kms.hardening import harden_process


def main() -> None:
    """Harden this process, then run the command line and exit."""
    harden_process()
    from hsm_kms.cli import main as command_line  # noqa: PLC0415 - only once hardened

    command_line()
