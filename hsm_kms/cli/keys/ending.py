"""Destroy the objects of a key so that a crash in between can be explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hsm_kms.cli.keys.options import tell
from hsm_kms.errors import MechanismError
from hsm_kms.ipc.messages import Destroy
from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from hsm_kms.cli.keys.journal import Journal
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.keys.listing import Ask
    from hsm_kms.state_dir.records import KeyWork


async def destroy_objects(
    ask: Ask,
    journal: Journal,
    found: Found,
    work: Literal["cancel", "destroy"],
    key_id: str,
) -> int:
    """Destroy the AES key, then the HMAC key beside it.

    Args:
        ask: Asks a worker with a read-write session.
        journal: Of this node.
        found: The key.
        work: What the user calls it.
        key_id: Under which it is spoken of.

    Returns:
        How many objects are gone.

    Raises:
        HsmKmsError: Not all could be destroyed.
    """
    if found.beside is None:
        await _destroy(ask, found.ref, partner=False)
        return 1
    journal.begin(work, found.ref, key_id)
    await _destroy(ask, found.ref, partner=False)
    await _destroy(ask, found.beside, partner=True)
    journal.done(found.ref.cka_id)
    return 2


async def destroy_rest(ask: Ask, journal: Journal, ref: KeyRef) -> None:
    """Destroy an HMAC key whose AES key is gone.

    Args:
        ask: Asks a worker with a read-write session.
        journal: Of this node.
        ref: The AES key that it belonged to.

    Raises:
        HsmKmsError: It could not be destroyed.
    """
    await _destroy(ask, ref, partner=True)
    journal.done(ref.cka_id)


def broken_off(
    journal: Journal, survey: Survey, key_id: str, work: Literal["cancel", "destroy"]
) -> tuple[KeyWork | None, KeyRef | None]:
    """What an earlier run left of a key whose AES key it destroyed.

    Returns:
        What it had begun, or None; and the AES key that the HMAC key which is left
        belonged to, or None.

    Raises:
        StateCorruptError: The journal cannot be believed.
    """
    for each in journal.begun():
        if each.work != work or each.key_id is None or not _same(each.key_id, key_id):
            continue
        left = [ref for ref in survey.loose if ref.cka_id.hex() == each.cka_id]
        return each, left[0] if left else None
    return None, None


async def finish(ask: Ask, journal: Journal, work: KeyWork, left: KeyRef | None) -> int:
    """End what an earlier run began, and say so.

    Returns:
        How many objects are gone by this.

    Raises:
        HsmKmsError: What is left could not be destroyed.
    """
    what = f"`keys {work.work}` was broken off at {work.began}; its AES key is gone"
    if left is None:
        tell(f"{what}, and so is its HMAC key")
        journal.done(bytes.fromhex(work.cka_id))
        return 0
    tell(f"{what}, and its HMAC key goes now")
    await destroy_rest(ask, journal, left)
    return 1


def _same(one: str, other: str) -> bool:
    return fingerprint_in(one) == fingerprint_in(other)


async def _destroy(ask: Ask, ref: KeyRef, *, partner: bool) -> None:
    try:
        await ask(Destroy(ref=ref, partner=partner))
    except MechanismError as error:
        raise MechanismError(
            f"the token keeps the key: {error}",
            function=error.function,
            rv=error.rv,
            hint="destroy it with the tools of the HSM",
        ) from None
