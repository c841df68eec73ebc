"""Provide `hsm-kms etcd`: count, explain and verify what the API server stored."""

from __future__ import annotations

import click

from hsm_kms.cli.lazy import Lazy, LazyGroup

_COMMANDS = {
    "scan": Lazy(
        "hsm_kms.cli.etcd.scan:scan_command",
        "Count stored objects by resource, provider and key; no key is needed.",
    ),
    "show": Lazy(
        "hsm_kms.cli.etcd.show:show_command",
        "Explain one stored value; no key is needed, and nothing is decrypted.",
    ),
    "verify": Lazy(
        "hsm_kms.cli.etcd.verify:verify",
        "Have the token open every wrapped key that etcd holds.",
    ),
}


@click.group("etcd", cls=LazyGroup, lazy=_COMMANDS)
def etcd_group() -> None:
    """Count, explain and verify what the API server stored in etcd."""
