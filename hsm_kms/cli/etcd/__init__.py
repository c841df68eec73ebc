"""Provide `hsm-kms etcd`: count, explain, verify and decrypt stored values."""

from __future__ import annotations

import click

from hsm_kms.cli.lazy import Lazy, LazyGroup

_COMMANDS = {
    "scan": Lazy(
        "hsm_kms.cli.etcd.scan:scan_command",
        "Count stored objects by resource, provider and key; needs no key.",
    ),
    "show": Lazy(
        "hsm_kms.cli.etcd.show:show_command",
        "Explain one stored value; needs no key, and decrypts nothing.",
    ),
    "verify": Lazy(
        "hsm_kms.cli.etcd.verify:verify",
        "Have the token decrypt every wrapped key that etcd holds.",
    ),
    "decrypt": Lazy(
        "hsm_kms.cli.etcd.decrypt:decrypt",
        "Decrypt one stored value with the token, without an API server.",
    ),
}


@click.group("etcd", cls=LazyGroup, lazy=_COMMANDS)
def etcd_group() -> None:
    """Count, explain, verify and decrypt the values that the API server stored."""
