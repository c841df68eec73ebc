"""Generate and destroy the objects of a key, and finish what was interrupted.

A key for AES-CBC with HMAC is a pair of objects: an AES key and its HMAC key. The order
of the calls, and the journal, show the next run what a crash in between has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hsm_kms.cli.streams import tell
from hsm_kms.errors import HsmKmsError, KeyNotFoundError, MechanismError
from hsm_kms.ipc.messages import Destroy, FindKeys, GenerateKey, Probe
from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism
from hsm_kms.keys.discovery import wanted_mechanisms
from hsm_kms.keys.key_id import fingerprint_in, make_cka_id
from hsm_kms.keys.listing import list_keys
from hsm_kms.server.settings import key_settings
from hsm_kms.token.errors import error_from

if TYPE_CHECKING:
    from hsm_kms.cli.keys.journal import Journal
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.config.schema import Config
    from hsm_kms.keys.listing import Ask
    from hsm_kms.keys.token_key import KeySettings
    from hsm_kms.state_dir.records import KeyWork


def label_for_new(config: Config) -> str:
    """Return the CKA_LABEL for a new key.

    Raises:
        HsmKmsError: The configuration lists CKA_IDs, so a new key would not be used.
    """
    settings = key_settings(config)
    if settings.ids or settings.label is None:
        raise HsmKmsError(
            "keys.ids lists the CKA_IDs in use; that of a new key would not be listed",
            hint="remove keys.ids (or the id in token.uri), generate the key, then add "
            "its CKA_ID",
        )
    return settings.label


def free_time(survey: Survey, seconds: float) -> int:
    """Return an activation time that no other key has: `seconds`, or the next free one.

    Args:
        survey: The keys on the token.
        seconds: The wanted time, in seconds since the Unix epoch.
    """
    taken = {key.activation for key in survey.ring.keys}
    activation = int(seconds)
    while activation in taken:
        activation += 1
    return activation


async def make_key(
    ask: Ask, journal: Journal, survey: Survey, label: str, activation: int
) -> KeyRef:
    """Generate an AES key, and its HMAC key if the token does not support AES-GCM.

    Args:
        ask: Sends requests to a worker with a read-write session.
        journal: Journal of this node.
        survey: The keys on the token.
        label: CKA_LABEL of the new key.
        activation: Activation time, in seconds since the Unix epoch.

    Raises:
        HsmKmsError: The token did not generate both keys.
    """
    settings = survey.ring.settings
    ref = KeyRef(label, make_cka_id(activation))
    aes = GenerateKey(ref=ref, private=settings.private)
    mac = GenerateKey(ref=ref, partner=True, private=settings.private)
    cipher = survey.cipher
    if cipher is None and settings.mechanism != "auto":
        cipher = Cipher(settings.mechanism)
    if cipher is Cipher.CBC_HMAC:
        journal.begin("make", ref)
        await ask(mac)
        await ask(aes)
        journal.done(ref.cka_id)
        return ref
    await ask(aes)
    if cipher is None and not await does_gcm(ask, ref, settings):
        await ask(mac)
    return ref


async def does_gcm(ask: Ask, ref: KeyRef, settings: KeySettings) -> bool:
    """Return True if AES-GCM is configured and the token supports it with this key.

    Raises:
        HsmKmsError: AES-GCM does not work and no other mechanism is configured, or the
            token failed.
    """
    wanted = wanted_mechanisms(settings)
    gcm = tuple(each for each in wanted if each.cipher is Cipher.GCM)
    if not gcm:
        return False
    try:
        fingerprint = await _fingerprint_of_new(ask, ref)
        await ask(Probe(ref=ref, fingerprint=fingerprint, paired=False, wanted=gcm))
    except MechanismError:
        if Mechanism.CBC_HMAC not in wanted:
            raise
        return False
    return True


async def _fingerprint_of_new(ask: Ask, ref: KeyRef) -> str:
    for seen in await list_keys(ask, FindKeys(label=ref.label, ids=(ref.cka_id,))):
        if seen.fingerprint is not None:
            return seen.fingerprint
        if seen.problem is not None:
            raise error_from(seen.problem)
    raise KeyNotFoundError("the token does not show the key that it generated")


async def clear_leftovers(ask: Ask, journal: Journal, survey: Survey) -> bool:
    """Destroy the HMAC keys of pairs that an earlier run here began to generate.

    The pair never had its AES key, so nothing was ever wrapped under it. For any other
    HMAC key without its AES key, print how to remove it.

    Returns:
        True if a key was destroyed.
    """
    made = {each.cka_id for each in journal.begun() if each.work == "make"}
    cleared = False
    for ref in survey.loose:
        cka_id = ref.cka_id.hex()
        if cka_id not in made:
            tell(
                f"the token holds an HMAC key without its AES key (CKA_ID {cka_id})",
                f"hint: run `hsm-kms keys cancel {cka_id}` to remove it",
            )
            continue
        tell(
            "an earlier run was interrupted after it generated an HMAC key and before "
            f"it generated the AES key: removing the HMAC key (CKA_ID {cka_id})"
        )
        await ask(Destroy(ref=ref, partner=True))
        cleared = True
    for cka_id in made:
        journal.done(bytes.fromhex(cka_id))
    return cleared


async def destroy_objects(
    ask: Ask,
    journal: Journal,
    found: Found,
    work: Literal["cancel", "destroy"],
    key_id: str,
) -> int:
    """Destroy the AES key, then its HMAC key.

    Args:
        ask: Sends requests to a worker with a read-write session.
        journal: Journal of this node.
        found: The key.
        work: The command that destroys it.
        key_id: key_id of the key, for the journal.

    Returns:
        The number of objects that were destroyed.

    Raises:
        HsmKmsError: An object could not be destroyed.
    """
    key = Destroy(ref=found.ref, fingerprint=found.fingerprint)
    if found.beside is None:
        await _destroy(ask, key)
        return 1
    journal.begin(work, found.ref, key_id)
    await _destroy(ask, key)
    await _destroy(ask, Destroy(ref=found.beside, partner=True))
    journal.done(found.ref.cka_id)
    return 2


async def destroy_leftover(ask: Ask, journal: Journal, ref: KeyRef) -> None:
    """Destroy an HMAC key whose AES key is gone.

    Args:
        ask: Sends requests to a worker with a read-write session.
        journal: Journal of this node.
        ref: The AES key that the HMAC key belonged to.

    Raises:
        HsmKmsError: The HMAC key could not be destroyed.
    """
    await _destroy(ask, Destroy(ref=ref, partner=True))
    journal.done(ref.cka_id)


def interrupted_work(
    journal: Journal, survey: Survey, key_id: str, work: Literal["cancel", "destroy"]
) -> tuple[KeyWork | None, KeyRef | None]:
    """Return what an interrupted run left of a key whose AES key it destroyed.

    Returns:
        The journal's record, or None if there is none; and the name of the destroyed
        AES key, or None if its HMAC key is gone too.

    Raises:
        StateCorruptError: The journal is corrupt.
    """
    for each in journal.begun():
        if each.work != work or each.key_id is None or not _same(each.key_id, key_id):
            continue
        left = [ref for ref in survey.loose if ref.cka_id.hex() == each.cka_id]
        return each, left[0] if left else None
    return None, None


async def finish(ask: Ask, journal: Journal, work: KeyWork, left: KeyRef | None) -> int:
    """Finish what an interrupted run began, and print that.

    Args:
        ask: Sends requests to a worker with a read-write session.
        journal: Journal of this node.
        work: The journal's record.
        left: The destroyed AES key whose HMAC key is left, or None.

    Returns:
        The number of objects that were destroyed now.

    Raises:
        HsmKmsError: The HMAC key could not be destroyed.
    """
    what = f"`keys {work.work}` was interrupted at {work.began}; its AES key is gone"
    if left is None:
        tell(f"{what}, and its HMAC key too")
        journal.done(bytes.fromhex(work.cka_id))
        return 0
    tell(f"{what}; destroying its HMAC key now")
    await destroy_leftover(ask, journal, left)
    return 1


def _same(one: str, other: str) -> bool:
    return fingerprint_in(one) == fingerprint_in(other)


async def _destroy(ask: Ask, request: Destroy) -> None:
    try:
        await ask(request)
    except MechanismError as error:
        raise MechanismError(
            f"the token does not allow to destroy the key: {error}",
            function=error.function,
            rv=error.rv,
            hint="destroy the key with the HSM's own tools",
        ) from None
