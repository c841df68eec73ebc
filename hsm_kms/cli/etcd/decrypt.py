"""Provide `hsm-kms etcd decrypt`: decrypt one stored value without an API server.

1. A value is decrypted only if hsm-kms wrapped its DEK or seed; the provider of any
   other value is named.
2. The object goes to stdout as printable ASCII, after a question unless it was
   answered on the command line, or unchanged to a new file of mode 0600.
3. Before that, the audit records and the log say who decrypts which value; neither
   says what is in it.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.audit import Subject, audited, chosen, login_uid
from hsm_kms.cli.etcd.destination import destination_options
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.one_item import read_item
from hsm_kms.cli.etcd.options import etcd_options
from hsm_kms.cli.one_worker import login_options, one_worker
from hsm_kms.cli.options import config_option
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.config import load as configuration
from hsm_kms.errors import CiphertextError, HsmKmsError
from hsm_kms.etcd.refusals import (
    FOREIGN,
    LOCAL,
    NO_KEY,
    NOT_A_RECORD,
    NOT_AUTHENTIC,
    RETIRED,
    RefusedError,
)
from hsm_kms.etcd.text import printable, text_of
from hsm_kms.etcd.values import Provider, explain
from hsm_kms.etcd.verify import is_ours
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.cli.etcd.destination import Destination
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.cli.one_worker import LoginChoice
    from hsm_kms.config.schema import Config
    from hsm_kms.etcd.envelope import Plaintext
    from hsm_kms.etcd.source import Item
    from hsm_kms.etcd.values import Stored
    from hsm_kms.wrapping.record import Record

_MAX_KEY_CHARS: Final = 512
_BY_KEY: Final = "an API server that has this key can read it"
_OTHERS: Final = {
    Provider.IDENTITY: (
        "is stored unencrypted",
        "read it with `etcdctl get KEY --print-value-only`",
    ),
    Provider.AESCBC: ("was encrypted by aescbc with the key {name!r}", _BY_KEY),
    Provider.AESGCM: ("was encrypted by aesgcm with the key {name!r}", _BY_KEY),
    Provider.SECRETBOX: ("was encrypted by secretbox with the key {name!r}", _BY_KEY),
    Provider.KMS_V1: ("was encrypted by another KMS plugin, {name!r} of KMS v1", None),
    Provider.KMS_V2: ("was encrypted by another KMS plugin, {name!r} of KMS v2", None),
    Provider.UNKNOWN: ("was encrypted by an unknown provider, {name!r}", None),
}

_CURES: Final = {
    NO_KEY: "use the token that holds it; if the key was retired, give --any-key",
    RETIRED: "to use the key anyway, give --any-key",
    FOREIGN: "someone who knows the key may have forged the value; to decrypt it "
    "anyway, give --any-key",
    LOCAL: "someone who read a server's memory may have forged the value; to decrypt "
    "it anyway, use a copy of the configuration with local_keys.accept_local: true",
    NOT_AUTHENTIC: "set the scope in the configuration to that of the cluster that "
    "wrote the value; it is not stored in the value",
}

_log = get_logger(__name__)


@click.command(cls=EtcdCommand)
@click.argument("name", metavar="KEY")
@destination_options
@click.option(
    "--any-key",
    is_flag=True,
    help="Use any AES key of the token: retired, foreign, or with another label.",
)
@config_option
@etcd_options
@login_options
def decrypt(
    path: Path,
    *,
    name: str,
    to: Destination,
    any_key: bool,
    etcd: EtcdChoice,
    login: LoginChoice,
) -> None:
    """Decrypt one stored value with the token, without an API server.

    KEY is the key in etcd, such as /registry/secrets/default/NAME. A key that does
    not begin with a slash is relative to --prefix.

    Prints a Secret as a manifest, and an object that is stored as JSON. Writes any
    other object, in protobuf, to --output-file only. Asks before it prints.

    Logs on stderr who decrypted which value, but not what is in it. Writes nothing to
    etcd. The rules are those of the server: a retired or foreign key decrypts nothing
    unless --any-key is given.
    """
    config = configuration.load(path)
    item = read_item(name, etcd)
    stored = explain(item.value)
    record = _record_of(stored, _shown(item))
    to.ask(_shown(item))
    if any_key:
        config = _with_any_key(config)
    subject = Subject(
        key_id=record.header.key_id,
        object=_shown(item),
        destination=str(to),
        options=chosen({"--any-key": any_key}),
    )
    with audited(config, "etcd decrypt", subject):
        secret = asyncio.run(_unwrapped(config, login, record, _shown(item)))
        plaintext = _opened(stored, secret, item)
    _log_who(item, record, to, any_key=any_key)
    if not plaintext.authenticated:
        _log.warning(
            "the value may have been changed: it was encrypted by AES-CBC, as API "
            "servers before 1.25 did, which authenticates nothing",
            key=_shown(item),
        )
    to.give(plaintext.data)


def _shown(item: Item) -> str:
    return printable(text_of(item.key), _MAX_KEY_CHARS)


def _record_of(stored: Stored, key: str) -> Record:
    """Return the record of hsm-kms in a value.

    Raises:
        HsmKmsError: The value is damaged, or of another provider.
    """
    if stored.problem:
        raise HsmKmsError(f"{key} is damaged: {stored.problem}")
    if stored.record:
        return stored.record
    if is_ours(stored):
        raise HsmKmsError(f"{key} is damaged: {NOT_A_RECORD}")
    by, cure = _OTHERS[stored.provider]
    by = by.format(name=printable(stored.name))
    raise HsmKmsError(f"{key} {by}, so hsm-kms cannot decrypt it", hint=cure)


def _with_any_key(config: Config) -> Config:
    """Return a configuration that selects every AES key, and refuses none."""
    every = {"label": None, "ids": (), "retired": (), "foreign": "decrypt"}
    keys = config.keys.model_copy(update=every)
    return config.model_copy(update={"keys": keys})


async def _unwrapped(
    config: Config, login: LoginChoice, record: Record, key: str
) -> bytes:
    """Return the DEK or seed in a record.

    Raises:
        HsmKmsError: The token failed, or does not decrypt the record.
    """
    from hsm_kms.etcd.token_opener import TokenOpener  # noqa: PLC0415 - as in verify

    async with one_worker(config, login) as worker:
        ring = await read_ring(config, worker)
        ask = partial(worker.ask, seconds=config.token.hang_timeout)
        local = config.local_keys.accept_local
        try:
            return await TokenOpener(ask, ring, config.scope, accept_local=local).open(
                record
            )
        except RefusedError as error:
            raise HsmKmsError(
                f"{key} cannot be decrypted with this token: {error} "
                f"(key_id {record.header.key_id})",
                hint=_CURES.get(str(error)),
            ) from None


def _opened(stored: Stored, secret: bytes, item: Item) -> Plaintext:
    from hsm_kms.etcd.envelope import decrypt_data  # noqa: PLC0415 - as above

    try:
        return decrypt_data(stored, secret, item.key)
    except CiphertextError:
        raise HsmKmsError(
            f"{_shown(item)} is not authentic: it was damaged, or copied from another "
            "key of etcd"
        ) from None


def _log_who(item: Item, record: Record, to: Destination, *, any_key: bool) -> None:
    """Log who decrypted which value; nothing of what is in it."""
    _log.warning(
        "stored value decrypted",
        key=_shown(item),
        key_id=record.header.key_id,
        any_key=any_key,
        uid=os.getuid(),
        login_uid=login_uid(),
        to=str(to),
    )
