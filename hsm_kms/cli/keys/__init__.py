"""Provide `hsm-kms keys`: generate, list, rotate, retire and destroy keys.

Each command has its own file and starts its own worker. `survey` holds what a command
sees of the token; `journal` holds what outlives a command that was interrupted.

1. A command says what it will do before it does it, and asks before it does anything
   that cannot be undone or that interrupts requests.
2. The HMAC key of a pair is generated first and destroyed last, so that the pair
   appears and disappears in one step. After a crash in between, the next run explains
   the leftovers and finishes the work.
3. A key is destroyed on facts alone: which key is current on this node, which keys
   were, and which keys etcd still needs.
"""

from __future__ import annotations

import click

from hsm_kms.cli.lazy import Lazy, LazyGroup

_COMMANDS = {
    "generate": Lazy(
        "hsm_kms.cli.keys.generate:generate",
        "Generate an AES-256 key on the token, with the configured label.",
    ),
    "list": Lazy(
        "hsm_kms.cli.keys.list:list_keys",
        "List the keys with the configured label, and the state of each on this node.",
    ),
    "rotate": Lazy(
        "hsm_kms.cli.keys.rotate:rotate",
        "Generate the next key; every node switches to it at its activation time.",
    ),
    "cancel": Lazy(
        "hsm_kms.cli.keys.cancel:cancel",
        "Destroy a pending key before its activation time, or half a pair by CKA_ID.",
    ),
    "retire": Lazy(
        "hsm_kms.cli.keys.retire:retire",
        "Stop every node from decrypting with a key that is no longer used.",
    ),
    "destroy": Lazy(
        "hsm_kms.cli.keys.destroy:destroy", "Permanently delete a retired key."
    ),
}


@click.group("keys", cls=LazyGroup, lazy=_COMMANDS)
def keys_group() -> None:
    """Generate, list, rotate, retire and destroy the keys on the token."""
