"""`hsm-kms keys`: the keys on the token, from birth to end.

Each command has a file of its own and a worker of its own. `survey` is what they all
see of the token; `journal` is what outlives a command that was broken off.

1. What will happen is told before; what cannot be undone, or hurts, is asked for.
2. Of a pair the HMAC key is made first and goes last, so that the pair is there, or is
   gone, in one step. What a crash in between leaves, the next run explains and ends.
3. A key goes only by facts: what is current here, what was, what etcd still holds.
"""

from __future__ import annotations

import click

from hsm_kms.cli.lazy import Lazy, LazyGroup

_COMMANDS = {
    "generate": Lazy(
        "hsm_kms.cli.keys.generate:generate",
        "Generate an AES-256 KEK on the token, under the configured label.",
    ),
    "list": Lazy(
        "hsm_kms.cli.keys.list:list_keys",
        "List the keys under the configured label, and what each is to this node.",
    ),
    "rotate": Lazy(
        "hsm_kms.cli.keys.rotate:rotate",
        "Generate the next key; every node turns to it at the same time, by itself.",
    ),
    "cancel": Lazy(
        "hsm_kms.cli.keys.cancel:cancel",
        "Destroy a pending key before its time, or half a pair by its CKA_ID.",
    ),
    "retire": Lazy(
        "hsm_kms.cli.keys.retire:retire",
        "Retire a key that is not used any more: no node opens anything with it then.",
    ),
    "destroy": Lazy("hsm_kms.cli.keys.destroy:destroy", "Destroy a retired key."),
}


@click.group("keys", cls=LazyGroup, lazy=_COMMANDS)
def keys_group() -> None:
    """Make, list, rotate, retire and destroy the keys on the token."""
