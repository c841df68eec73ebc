"""Check what only the token can tell: login, sessions, keys, policy and mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.cli.one_worker import configured_worker, log_in
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.cli.report import because
from hsm_kms.errors import HsmKmsError, PinRejectedError, PinUnavailableError
from hsm_kms.keys.key_memory import KeyMemory
from hsm_kms.keys.keyring import (
    FOREIGN,
    FOREIGN_HINT,
    KeyState,
)
from hsm_kms.keys.odd_keys import NO_CKA_ID, SAME_NAMES
from hsm_kms.server import settings
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.wrapping.by_token import canary, canary_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.report import Report
    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.process import Worker

STEPS: Final = ("token", "login", "sessions", "keys", "policy", "mechanism")
_LOGGED_IN: Final = ("keys", "policy", "mechanism")
_OF_CURRENT: Final = ("policy", "mechanism")
HEALTH_KEY: Final = "health-key"  # a step only if health.key is set
# A module that another user can change is not loaded, and no PIN is given to it.
_NEEDED_BY_TOKEN: Final = ("permissions", "module")
_NEEDED_BY_LOGIN: Final = ("state-directory", "pin")


def steps(config: Config) -> tuple[str, ...]:
    """Return the ids of the checks that need the token, in order."""
    return STEPS + _of_health_key(config)


def _logged_in(config: Config) -> tuple[str, ...]:
    return _LOGGED_IN + _of_health_key(config)


def _of_health_key(config: Config) -> tuple[str, ...]:
    return () if config.health.key is None else (HEALTH_KEY,)


async def check_token(report: Report, config: Config) -> None:
    """Log in, read the keys, and encrypt once, with a worker of this command.

    Args:
        report: Has the findings of the node, and takes those of the token.
        config: The configuration.
    """
    if (missing := report.missing(_NEEDED_BY_TOKEN)) is not None:
        report.skip(steps(config), because(missing))
        return
    try:
        async with configured_worker(config) as worker:
            _describe_token(report, worker)
            logged_in = await _check_login(report, config, worker)
            _check_sessions(report, config, worker)
            if logged_in:
                await _check_keys(report, config, worker)
            else:
                report.skip(_logged_in(config), because("login"))
    except HsmKmsError as error:
        _stop(report, config, error)


def _stop(report: Report, config: Config, error: HsmKmsError) -> None:
    """Note the failure of the worker in the first step that has not ended."""
    ended = {each.id for each in report.findings}
    whole = steps(config)
    failed, *rest = [step for step in whole if step not in ended] or whole[-1:]
    report.fail(failed, "token", error)
    if rest:
        report.skip(rest, because(failed))


def _describe_token(report: Report, worker: Worker) -> None:
    token = worker.started.token if worker.started else None
    if token is not None:
        what = f"token {token.label!r}, serial {token.serial}, slot {token.slot}"
        report.ok("token", what)


async def _check_login(report: Report, config: Config, worker: Worker) -> bool:
    """Log in; return True if the keys can be read."""
    if config.token.login == "none":
        report.ok("login", "no login needed")
        return True
    if (missing := report.missing(_NEEDED_BY_LOGIN)) is not None:
        report.skip(["login"], because(missing))
        return False
    try:
        await log_in(config, worker)
    except HsmKmsError as error:
        of_pin = isinstance(error, PinRejectedError | PinUnavailableError)
        report.fail("login", "PIN" if of_pin else "token", error)
        return False
    report.ok("login", f"login as {config.token.login}")
    return True


def _check_sessions(report: Report, config: Config, worker: Worker) -> None:
    started = worker.started
    token = started.token if started else None
    if started is None or token is None:
        return
    for line in _session_budget(config, started.os_locking, token.max_sessions):
        note = report.warn if line.startswith("sessions exceed") else report.ok
        note("sessions", line)


def _session_budget(
    config: Config, os_locking: bool, most: int | None
) -> Iterator[str]:
    """Compare the sessions that the server and this command need with the limit."""
    if not os_locking:
        yield "the module does not support locking: one session per worker"
    each, workers = settings.sessions_needed(config, os_locking=os_locking)
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
            what = f"key {key.key_id} ({key.cipher}), {ring.state(key)}"
            report.ok("keys", what)
    _warn_of_odd_keys(report, ring)
    if ring.current is not None:
        what = f"key {ring.current.key_id}, label {ring.current.ref.label!r}, current"
        report.ok("keys", what)
    if ring.fault is not None:
        report.fail("keys", "key", ring.fault)
    if ring.current is None:
        skipped = _OF_CURRENT + _of_health_key(config)
        report.skip(skipped, "there is no current key")
        return
    _check_policy(report, ring.current)
    await _check_mechanism(report, config, worker, ring)


def _warn_of_foreign(report: Report, key: TokenKey) -> None:
    cka_id = key.ref.cka_id.hex() or "(empty)"
    what = f"key {key.key_id} ({key.cipher}), CKA_ID {cka_id}: {FOREIGN}"
    report.warn("keys", what, FOREIGN_HINT)


def _warn_of_odd_keys(report: Report, ring: Keyring) -> None:
    for each in ring.unidentified:
        report.warn("keys", str(each.error), each.error.hint)
    for key in ring.twins:
        report.warn("keys", f"key {key.key_id}: {SAME_NAMES}")
    for key in ring.without_cka_id:
        report.warn("keys", f"key {key.key_id}: {NO_CKA_ID}")


def _check_policy(report: Report, key: TokenKey) -> None:
    for violation in key.violations:
        report.warn("policy", f"policy: {violation}")
    if not key.violations:
        what = "policy: AES-256, sensitive, not extractable, encrypt and decrypt"
        report.ok("policy", what)
    if not key.born_here:
        what = "the key was imported, or could once be read from the token"
        report.warn("policy", what)


async def _check_mechanism(
    report: Report, config: Config, worker: Worker, ring: Keyring
) -> None:
    key = ring.current
    if key is None or key.mechanism is None:
        skipped = _OF_CURRENT[1:] + _of_health_key(config)
        report.skip(skipped, "no mechanism works with the current key")
        return
    memory = KeyMemory(ring.settings, StateDir(config.state_dir))
    request = canary(key, key.mechanism, config.scope, memory.kept_canary(key))
    await worker.ask(request, canary_seconds(request, config.token.call_timeout))
    what = f"mechanism {key.mechanism}: encrypted and decrypted once"
    report.ok("mechanism", what)
    await _check_health_key(report, config, worker, key.mechanism)


async def _check_health_key(
    report: Report, config: Config, worker: Worker, mechanism: Mechanism
) -> None:
    health_key = settings.health_key(config)
    if health_key is None:
        return
    try:
        await health_key.prove(worker, mechanism)
    except HsmKmsError as error:
        report.fail(HEALTH_KEY, "health.key", error)
        return
    what = f"health key labelled {health_key.label!r}: encrypted and decrypted once"
    report.ok(HEALTH_KEY, what)
