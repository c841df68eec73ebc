"""Check what only the token can tell: login, sessions, keys, policy and mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.errors import HsmKmsError, PinRejectedError, PinUnavailableError
from hsm_kms.keys.key_memory import KeyMemory
from hsm_kms.keys.keyring import (
    FOREIGN,
    FOREIGN_HINT,
    KeyState,
)
from hsm_kms.keys.odd_keys import NO_CKA_ID, SAME_NAMES
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.wrapping.by_token import canary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.check.report import Report
    from hsm_kms.config.schema import Config
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.process import Worker


async def check_token(report: Report, config: Config) -> None:
    """Log in, read the keys, and encrypt once, with a worker of this command."""
    try:
        async with one_worker(config) as worker:
            _describe_token(report, config, worker)
            await _check_keys(report, config, worker)
    except (PinRejectedError, PinUnavailableError) as error:
        report.fail("PIN", error)
    except HsmKmsError as error:
        report.fail("token", error)


def _describe_token(report: Report, config: Config, worker: Worker) -> None:
    started = worker.started
    token = started.token if started else None
    if started is None or token is None:
        return
    report.ok(f"token {token.label!r}, serial {token.serial}, slot {token.slot}")
    if config.token.login != "none":
        report.ok(f"login as {config.token.login}")
    for line in _session_budget(config, started.os_locking, token.max_sessions):
        (report.warn if line.startswith("sessions exceed") else report.ok)(line)


def _session_budget(
    config: Config, os_locking: bool, most: int | None
) -> Iterator[str]:
    """Compare the sessions that the server and this command need with the limit."""
    if not os_locking:
        yield "the module does not support locking: one session per worker"
    each = (config.token.sessions_per_worker if os_locking else 1) + 1
    workers = config.token.workers + 1
    need = each * workers + 1
    sum_ = f"{each} x {workers} workers (one spare) + 1 for a command = {need}"
    if most is None:
        yield f"sessions {sum_}; the token reports no session limit"
    elif need > most:
        yield f"sessions exceed the token's limit of {most}: {sum_}"
    else:
        yield f"sessions {sum_} of {most}"


async def _check_keys(report: Report, config: Config, worker: Worker) -> None:
    ring = await read_ring(config, worker)
    for key in ring.keys:
        if ring.state(key) is KeyState.FOREIGN:
            _warn_of_foreign(report, key)
        elif key is not ring.current:
            report.ok(f"key {key.key_id} ({key.cipher}), {ring.state(key)}")
    _warn_of_odd_keys(report, ring)
    if ring.current is not None:
        _describe_key(report, ring.current)
    if ring.fault is not None:
        report.fail("key", ring.fault)
        return
    if ring.current is not None and ring.current.mechanism is not None:
        memory = KeyMemory(ring.settings, StateDir(config.state_dir))
        request = canary(
            ring.current,
            ring.current.mechanism,
            config.scope,
            memory.kept_canary(ring.current),
        )
        await worker.ask(request, config.token.call_timeout)
        report.ok(f"mechanism {ring.current.mechanism}: encrypted and decrypted once")


def _warn_of_foreign(report: Report, key: TokenKey) -> None:
    cka_id = key.ref.cka_id.hex() or "(empty)"
    what = f"key {key.key_id} ({key.cipher}), CKA_ID {cka_id}: {FOREIGN}"
    report.warn(what, FOREIGN_HINT)


def _warn_of_odd_keys(report: Report, ring: Keyring) -> None:
    for each in ring.unidentified:
        report.warn(str(each.error), each.error.hint)
    for key in ring.twins:
        report.warn(f"key {key.key_id}: {SAME_NAMES}")
    for key in ring.without_cka_id:
        report.warn(f"key {key.key_id}: {NO_CKA_ID}")


def _describe_key(report: Report, key: TokenKey) -> None:
    report.ok(f"key {key.key_id}, label {key.ref.label!r}, current")
    for violation in key.violations:
        report.warn(f"policy: {violation}")
    if not key.violations:
        report.ok("policy: AES-256, sensitive, not extractable, encrypt and decrypt")
    if not key.born_here:
        report.warn("the key was imported, or could once be read from the token")
