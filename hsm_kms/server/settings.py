"""Derive the settings of each part from the configuration; start nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.config import pkcs11_uri
from hsm_kms.config.pkcs11_uri import Pkcs11Uri
from hsm_kms.ipc.messages import Configure
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.settings import WorkerSettings
from hsm_kms.wrapping.settings import WrapSettings

if TYPE_CHECKING:
    from hsm_kms.config.schema import ApiV1, ApiV2, Config
    from hsm_kms.health.health_key import HealthKey

# CK_USER_TYPE; crypto-user is the Luna and CloudHSM extension.
_USER_TYPES: Final = {"so": 0, "user": 1, "crypto-user": 0x8000_0001}


def user_type(login: str) -> int | None:
    """Return the CK_USER_TYPE that `token.login` names; None for "none".

    Args:
        login: "user", "none", "crypto-user", "so", or a number such as 0x80000001.
    """
    if login == "none":
        return None
    return _USER_TYPES[login] if login in _USER_TYPES else int(login, 16)


def configure_message(config: Config, *, read_write: bool | None = None) -> Configure:
    """Return the first message to a worker.

    Args:
        config: The configuration.
        read_write: Overrides `token.read_write`, unless None.
    """
    token = config.token
    # The loader has copied label, serial, slot and module from the URI to their keys.
    uri = pkcs11_uri.parse(token.uri) if token.uri is not None else Pkcs11Uri()
    return Configure(
        module=str(token.module),
        init_args=token.init_args,
        token_label=token.token_label,
        token_serial=token.token_serial,
        slot=token.slot,
        manufacturer=uri.manufacturer,
        model=uri.model,
        library=uri.library,
        read_write=token.read_write if read_write is None else read_write,
        needs_login=token.login != "none",
        by_cka_id=config.keys.fingerprint == "cka_id",
    )


def pin_source(config: Config) -> PinSource | None:
    """Return the source of the PIN, or None if the token needs no login."""
    kind = user_type(config.token.login)
    if kind is None or config.token.pin_file is None:
        return None
    return PinSource(path=config.token.pin_file, user_type=kind)


def worker_settings(config: Config) -> WorkerSettings:
    """Return the settings of the server's workers."""
    token = config.token
    return WorkerSettings(
        configure=configure_message(config),
        env=token.env,
        workers=token.workers,
        sessions=token.sessions_per_worker,
        call_timeout=token.call_timeout,
        hang_timeout=token.hang_timeout,
        start_timeout=token.start_timeout,
    )


def sessions_needed(config: Config, *, os_locking: bool) -> tuple[int, int]:
    """Return how many sessions a worker of the server opens, and how many workers run.

    Each worker has one control session; one worker is a spare.

    Args:
        config: The configuration.
        os_locking: True if several threads of a process can use the module.
    """
    each = (config.token.sessions_per_worker if os_locking else 1) + 1
    return each, config.token.workers + 1


def key_settings(config: Config) -> KeySettings:
    """Return the settings by which keys are found and judged."""
    keys = config.keys
    return KeySettings(
        label=keys.label,
        ids=tuple(bytes.fromhex(each) for each in keys.ids),
        fingerprint=keys.fingerprint,
        current=keys.current,
        suffix=keys.suffix,
        retired=frozenset(fingerprint_in(each) for each in keys.retired),
        also_known_as={
            key_id: bytes.fromhex(cka_id)
            for key_id, cka_id in keys.also_known_as.items()
        },
        foreign=keys.foreign == "decrypt",
        shared=config.token.shared,
        enforce=keys.policy == "enforce",
        private=config.token.login != "none",
        mechanism=keys.mechanism,
        gcm_iv=keys.gcm_iv,
    )


def health_key(config: Config) -> HealthKey | None:
    """Return the key that canaries use in place of the KEKs; None if there is none."""
    if config.health.key is None:
        return None
    from hsm_kms.health.health_key import HealthKey  # noqa: PLC0415 - most have none

    return HealthKey(
        config.health.key,
        config.scope,
        call_timeout=config.token.call_timeout,
        seconds=config.token.hang_timeout,
    )


def wrap_settings(config: Config, api: ApiV2 | ApiV1) -> WrapSettings:
    """Return how one of the APIs wraps.

    Only v2 reads back each wrap: v1 wraps for every object that is written.

    Args:
        config: The configuration.
        api: `apis.v2` or `apis.v1` of this configuration.
    """
    local = config.local_keys
    return WrapSettings(
        wrapping=api.wrapping,
        verify=local.verify_wraps and api is config.apis.v2,
        accept_local=local.accept_local,
        patience=config.token.session_wait,
    )
