"""`hsm-kms keys`: make and list KEKs, with a worker of the command's own."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from hsm_kms import config as configuration
from hsm_kms import wiring
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.worker import LoginChoice, login_options, one_worker
from hsm_kms.discovery import Discovery, wanted_mechanisms
from hsm_kms.errors import HsmKmsError, MechanismError
from hsm_kms.key_id import make_cka_id
from hsm_kms.state import StateCorruptError, StateDir
from hsm_kms.worker.messages import GenerateKey, Probe
from hsm_kms.worker.values import Cipher, KeyRef, Mechanism

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.config_types import Config
    from hsm_kms.keyring import Keyring, TokenKey
    from hsm_kms.token.process import Worker


@click.group("keys")
def keys_group() -> None:
    """Make and list the keys on the token."""


@keys_group.command()
@config_option
@click.option("--another", is_flag=True, help="Make one although there is one.")
@login_options
@output_option
def generate(
    path: Path,
    *,
    another: bool,
    pin_file: Path | None,
    pin_prompt: bool,
    login: str | None,
    output: str,
) -> None:
    """Generate an AES-256 KEK on the token, under the configured label.

    The key is sensitive and never extractable. With several keys under the label,
    keys.current must name the one to encrypt with.
    """
    config = configuration.load(path)
    choice = LoginChoice(pin_file=pin_file, prompt=pin_prompt, login=login)
    before, after = asyncio.run(_generate(config, choice, another=another))
    known = {key.key_id for key in before.keys}
    # An AES key with an HMAC key beside it has two names; the one that can wrap counts.
    fresh = [key for key in after.keys if key.key_id not in known]
    made = next((key for key in fresh if key.mechanism is not None), fresh[0])
    if output == "json":
        click.echo(json.dumps({"key_id": made.key_id, "cka_id": made.ref.cka_id.hex()}))
        return
    click.echo(f"generated {made.key_id} (CKA_ID {made.ref.cka_id.hex()})")
    if sum(key.mechanism is not None for key in after.keys) > 1:
        click.echo("hint: set keys.current to the key_id to encrypt with", err=True)


@keys_group.command("list")
@config_option
@login_options
@output_option
def list_keys(
    path: Path,
    *,
    pin_file: Path | None,
    pin_prompt: bool,
    login: str | None,
    output: str,
) -> None:
    """List the keys under the configured label, and which one is current."""
    config = configuration.load(path)
    choice = LoginChoice(pin_file=pin_file, prompt=pin_prompt, login=login)
    ring = asyncio.run(_read(config, choice))
    shown = _shown(ring)
    if output == "json":
        click.echo(json.dumps(shown))
        return
    for key in shown:
        click.echo(f"{key['key_id']}  {key['state']:8}  CKA_ID {key['cka_id']}")
        for offence in key["offences"]:
            click.echo(f"  {offence}")
    if ring.fault is not None:
        click.echo(f"hsm-kms: {ring.fault.sentence}", err=True)


async def _generate(
    config: Config, choice: LoginChoice, *, another: bool
) -> tuple[Keyring, Keyring]:
    label = _new_label(config)
    discovery = discovery_for(config)
    async with one_worker(config, choice, read_write=True) as worker:
        before = await discovery.read(worker, None, fresh=False)
        if before.keys and not another:
            raise HsmKmsError(
                f"there is a key labelled {label!r} already: {before.keys[0].key_id}",
                hint="--another makes one more; keys.current must then name one",
            )
        cka_id = make_cka_id(int(datetime.now(UTC).timestamp()))
        await _make(worker, config, KeyRef(label, cka_id))
        after = await discovery.read(worker, None, fresh=False)
    return before, after


def _new_label(config: Config) -> str:
    settings = wiring.key_settings(config)
    if settings.ids or settings.label is None:
        raise HsmKmsError(
            "keys.ids lists the keys that count, and a new key would not be among them",
            hint="leave keys.ids (or the id in token.uri) out while the key is made, "
            "then add its CKA_ID",
        )
    return settings.label


async def _read(config: Config, choice: LoginChoice) -> Keyring:
    async with one_worker(config, choice) as worker:
        return await discovery_for(config).read(worker, last_key_id(config), fresh=True)


async def _make(worker: Worker, config: Config, ref: KeyRef) -> None:
    """The AES key, and the HMAC key beside it where AES-GCM will not do."""
    seconds = config.token.start_timeout
    settings = wiring.key_settings(config)
    wanted = wanted_mechanisms(settings)
    await worker.ask(GenerateKey(ref=ref, private=settings.private), seconds)
    gcm = tuple(mechanism for mechanism in wanted if mechanism.cipher is Cipher.GCM)
    if gcm:
        try:
            await worker.ask(Probe(ref=ref, paired=False, wanted=gcm), seconds)
        except MechanismError:
            if Mechanism.CBC_HMAC not in wanted:
                raise
        else:
            return
    await worker.ask(
        GenerateKey(ref=ref, partner=True, private=settings.private), seconds
    )


def discovery_for(config: Config) -> Discovery:
    """What reads the keyring for a command; it freezes nothing."""
    return Discovery(
        wiring.key_settings(config),
        StateDir(config.state_dir),
        seconds=config.token.start_timeout,
        start_seconds=config.token.start_timeout,
        freeze=False,
    )


def last_key_id(config: Config) -> str | None:
    """key_id last current on this node; None where nothing tells."""
    try:
        last = StateDir(config.state_dir).last_key()
    except StateCorruptError:
        return None
    return last.key_id if last else None


def _state(key: TokenKey, ring: Keyring) -> str:
    if key is ring.current:
        return "current"
    return "held" if key.mechanism else "unusable"


def _shown(ring: Keyring) -> list[dict[str, Any]]:
    return [
        {
            "key_id": key.key_id,
            "state": _state(key, ring),
            "cipher": str(key.cipher),
            "label": key.ref.label,
            "cka_id": key.ref.cka_id.hex(),
            "activation": key.activation,
            "generated_on_token": key.born_here,
            "offences": list(key.offences),
        }
        for key in ring.keys
    ]
