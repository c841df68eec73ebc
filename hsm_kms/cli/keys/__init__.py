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

from hsm_kms.cli.keys.cancel import cancel
from hsm_kms.cli.keys.destroy import destroy
from hsm_kms.cli.keys.generate import generate
from hsm_kms.cli.keys.list import list_keys
from hsm_kms.cli.keys.retire import retire
from hsm_kms.cli.keys.rotate import rotate


@click.group("keys")
def keys_group() -> None:
    """Make, list, rotate, retire and destroy the keys on the token."""


for command in (generate, list_keys, rotate, cancel, retire, destroy):
    keys_group.add_command(command)
