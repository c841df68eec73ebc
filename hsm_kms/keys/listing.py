"""List and identify the keys on a token through a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from hsm_kms.errors import MechanismError
from hsm_kms.ipc.messages import KeyPage, Reply, Request

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import FindKeys
    from hsm_kms.ipc.values import KeySeen

# Asks the control session of one worker, with a limit.
Ask: TypeAlias = Callable[[Request], Awaitable[Reply]]


async def list_keys(
    ask: Ask,
    wanted: FindKeys,
    between: Callable[[], Awaitable[None]] | None = None,
) -> tuple[KeySeen, ...]:
    """List and identify every key that matches, page by page.

    Args:
        ask: Asks a worker that is logged in.
        wanted: The keys; where the pages begin is set here.
        between: Called between two pages, when nothing runs on the worker.

    Raises:
        HsmKmsError: The token could not be asked.
    """
    keys: list[KeySeen] = []
    skip: int | None = None
    while True:
        reply = await ask(msgspec.structs.replace(wanted, skip=skip))
        if not isinstance(reply, KeyPage):
            raise MechanismError("the worker answered FindKeys with something else")
        keys += reply.keys
        skip = reply.next
        if skip is None:
            return tuple(keys)
        if between is not None:
            await between()
