"""List and identify the keys on a token through a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from hsm_kms.errors import MechanismError
from hsm_kms.ipc.messages import (
    Block,
    FindKeys,
    Fingerprint,
    KeyPage,
    Reply,
    Request,
)
from hsm_kms.keys.key_id import FINGERPRINT_BLOCK, fingerprint_of

if TYPE_CHECKING:
    from hsm_kms.ipc.values import KeyRef, KeySeen

# Asks the control session of one worker, with a limit.
Ask: TypeAlias = Callable[[Request], Awaitable[Reply]]


async def list_keys(
    ask: Ask,
    label: str | None,
    ids: tuple[bytes, ...] = (),
    *,
    prefix: bool = False,
    partners: bool = False,
) -> tuple[KeySeen, ...]:
    """List every AES key with this CKA_LABEL and one of these CKA_IDs.

    Args:
        ask: Asks a worker that is logged in.
        label: CKA_LABEL; None for any.
        ids: CKA_IDs; empty for any.
        prefix: Match every CKA_LABEL that begins with `label`.
        partners: List HMAC keys instead; `label` and `ids` are those of HMAC keys.

    Raises:
        HsmKmsError: The token could not be asked.
    """
    keys: list[KeySeen] = []
    skip: int | None = 0
    while skip is not None:
        reply = await ask(
            FindKeys(label=label, ids=ids, prefix=prefix, partners=partners, skip=skip)
        )
        if not isinstance(reply, KeyPage):
            raise MechanismError("the worker answered FindKeys with something else")
        keys += reply.keys
        skip = reply.next
    return tuple(keys)


async def fingerprint(
    ask: Ask, ref: KeyRef, *, paired: bool, beside: KeyRef | None = None
) -> str:
    """Return the fingerprint of a key, computed by the key itself.

    Args:
        ask: Asks a worker that is logged in.
        ref: The AES key.
        paired: Return the fingerprint of the pair of AES key and HMAC key.
        beside: The AES key that the HMAC key belongs to; None for `ref`.

    Raises:
        HsmKmsError: The token could not be asked, or refuses the mechanisms.
    """
    block = FINGERPRINT_BLOCK
    reply = await ask(Fingerprint(ref=ref, block=block, paired=paired, beside=beside))
    if not isinstance(reply, Block):
        raise MechanismError("the worker answered a Fingerprint with something else")
    return fingerprint_of(reply.block, reply.mac)
