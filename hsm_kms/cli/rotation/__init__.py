"""Provide `hsm-kms rotation`: one guided rotation, step by step.

1. A step finds out by itself whether it is done: from the token, the nodes, etcd and
   the API server. Only what cannot be seen there is taken from the journal: which key
   is replaced, since when every node uses the new one, and what was verified.
2. So a run that was killed is resumed by running it again: what is done is not done
   twice, and what is half done is finished by the command that does it alone.
3. Nothing is destroyed: `keys retire --undo` reverts the last step, `keys cancel` the
   first one.
4. The journal says who did what and when. It contains no secret, and no credentials:
   whoever resumes gives their own.
"""

from __future__ import annotations

import click

from hsm_kms.cli.lazy import Lazy, LazyGroup

_COMMANDS = {
    "start": Lazy(
        "hsm_kms.cli.rotation.command:start",
        "Replace the current key: generate, re-encrypt, verify and retire.",
    ),
    "resume": Lazy(
        "hsm_kms.cli.rotation.command:resume",
        "Continue a rotation that was interrupted or has stopped.",
    ),
    "status": Lazy(
        "hsm_kms.cli.rotation.status:status",
        "Show which step of the rotation is done, and what comes next.",
    ),
}


@click.group("rotation", cls=LazyGroup, lazy=_COMMANDS)
def rotation_group() -> None:
    """Replace the current key on all nodes, guided from step to step."""
