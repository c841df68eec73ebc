"""Make and destroy the objects of a key, and finish what an interrupted run left.

A key of AES-CBC and HMAC is a pair of objects: an AES key and an HMAC key under the
same CKA_ID. The order of the calls, and the journal, tell the next run what a crash
in between has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hsm_kms.cli.keys.options import tell
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
    from hsm_kms.keys.keyring import KeySettings
    from hsm_kms.keys.listing import Ask
    from hsm_kms.state_dir.records import KeyWork


def label_for_new(config: Config) -> str:
    """CKA_LABEL of a new key.

    Raises:
        HsmKmsError: The configuration lists keys, and a new one would not be among
            them.
    """
    settings = key_settings(config)
    if settings.ids or settings.label is None:
        raise HsmKmsError(
            "keys.ids lists the keys that count, and a new key would not be among them",
            hint="leave keys.ids (or the id in token.uri) out while the key is made, "
            "then add its CKA_ID",
        )
    return settings.label


def free_time(survey: Survey, seconds: float) -> int:
    """An activation time that no other key has, at this time or right after.

    Args:
        survey: What is on the token.
        seconds: Since the Unix epoch.
    """
    taken = {key.activation for key in survey.ring.keys}
    activation = int(seconds)
    while activation in taken:
        activation += 1
    return activation


async def make_key(
    ask: Ask, journal: Journal, survey: Survey, label: str, activation: int
) -> KeyRef:
    """Make an AES key, and the HMAC key beside it where AES-GCM will not do.

    Args:
        ask: Asks a worker with a read-write session.
        journal: Of this node.
        survey: What is on the token.
        label: CKA_LABEL.
        activation: Seconds since the Unix epoch.

    Raises:
        HsmKmsError: The token did not make it, or not both.
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
    """Whether the token does AES-GCM with this key, where the configuration lets it.

    Raises:
        HsmKmsError: It does not, and nothing else is wanted; or it could not be asked.
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
    """Destroy the HMAC keys of pairs that an earlier run here did not finish making.

    Such a key never had an AES key beside it, so nothing was ever wrapped under it.
    Of other HMAC keys without an AES key it is said how to remove them.

    Returns:
        Whether anything was destroyed.
    """
    made = {each.cka_id for each in journal.begun() if each.work == "make"}
    cleared = False
    for ref in survey.loose:
        cka_id = ref.cka_id.hex()
        if cka_id not in made:
            tell(
                f"on the token is an HMAC key without its AES key (CKA_ID {cka_id})",
                f"hint: `hsm-kms keys cancel {cka_id}` removes it",
            )
            continue
        tell(
            "an earlier run was interrupted when it had made the HMAC key of a pair, "
            f"and not yet the AES key: it is removed (CKA_ID {cka_id})"
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
    key = Destroy(ref=found.ref, fingerprint=found.fingerprint)
    if found.beside is None:
        await _destroy(ask, key)
        return 1
    journal.begin(work, found.ref, key_id)
    await _destroy(ask, key)
    await _destroy(ask, Destroy(ref=found.beside, partner=True))
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
    await _destroy(ask, Destroy(ref=ref, partner=True))
    journal.done(ref.cka_id)


def interrupted_work(
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
    what = f"`keys {work.work}` was interrupted at {work.began}; its AES key is gone"
    if left is None:
        tell(f"{what}, and so is its HMAC key")
        journal.done(bytes.fromhex(work.cka_id))
        return 0
    tell(f"{what}, and its HMAC key goes now")
    await destroy_rest(ask, journal, left)
    return 1


def _same(one: str, other: str) -> bool:
    return fingerprint_in(one) == fingerprint_in(other)


async def _destroy(ask: Ask, request: Destroy) -> None:
    try:
        await ask(request)
    except MechanismError as error:
        raise MechanismError(
            f"the token keeps the key: {error}",
            function=error.function,
            rv=error.rv,
            hint="destroy it with the tools of the HSM",
        ) from None
