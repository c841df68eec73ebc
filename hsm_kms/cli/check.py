"""Provide `hsm-kms check`: one line for each requirement, with cause and cure."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.options import config_option
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.cli.tradeoff import tradeoff
from hsm_kms.config import load as configuration
from hsm_kms.errors import HsmKmsError, PinSettlingError, TokenAbsentError
from hsm_kms.keys.key_memory import KeyMemory
from hsm_kms.keys.keyring import FOREIGN, FOREIGN_HINT, KeyState
from hsm_kms.keys.odd_keys import NO_CKA_ID, SAME_NAMES
from hsm_kms.server import settings
from hsm_kms.server.writable import weaknesses
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.pin_verdict import PinVerdict
from hsm_kms.wrapping.by_token import canary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsm_kms.config.schema import Config
    from hsm_kms.keys.keyring import Keyring, TokenKey
    from hsm_kms.token.process import Worker

_MARKS: Final = {"ok": "✓", "warn": "!", "fail": "✗"}


class Report:
    """Print each finding as it is made.

    Attributes:
        failed: True if any requirement is not met.
    """

    def __init__(self) -> None:
        self.failed = False

    def ok(self, what: str) -> None:
        """Print a requirement that is met."""
        click.echo(f"{_MARKS['ok']} {what}")

    def warn(self, what: str) -> None:
        """Print a requirement that is met, with something the operator should know."""
        click.echo(f"{_MARKS['warn']} {what}")

    def fail(self, what: str, error: HsmKmsError) -> None:
        """Print a requirement that is not met, its cause and its cure."""
        self.failed = True
        click.echo(f"{_MARKS['fail']} {what}: {error}")
        if error.hint:
            click.echo(f"  hint: {error.hint}")


@click.command()
@config_option
@click.option("--offline", is_flag=True, help="Do not use the token.")
def check(path: Path, *, offline: bool) -> None:
    """Check the configuration, module, token, login, keys, policy and mechanism.

    Logs in under the same rules as the server, then encrypts and decrypts once with
    the current key. Ends with a table of what the configured wrapping mode gives up.
    Exits with 1 if any check fails.
    """
    config = configuration.load(path)
    report = Report()
    report.ok(f"configuration {path}")
    _check_writable(report, config, path)
    _check_state(report, config)
    _check_module(report, config)
    _check_pin(report, config)
    if not offline and not report.failed:
        asyncio.run(_check_token(report, config))
    for line in tradeoff(config):
        click.echo(line)
    sys.exit(1 if report.failed else 0)


def _check_writable(report: Report, config: Config, path: Path) -> None:
    found = weaknesses(config, path)
    for each in found:
        report.fail(each.setting, HsmKmsError(each.cause, hint=f"run {each.cure}"))
    if not found:
        report.ok("no other user can change configuration, module, PIN file or state")


def _check_state(report: Report, config: Config) -> None:
    state = StateDir(config.state_dir).open()
    if state.problem:
        report.fail("state directory", HsmKmsError(state.problem))
        return
    try:
        state.last_key()
    except HsmKmsError as error:
        report.fail("state directory", error)
        return
    report.ok(f"state directory {config.state_dir}")


def _check_module(report: Report, config: Config) -> None:
    module = config.token.module
    try:
        with module.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        absent = TokenAbsentError(
            f"{module}: {error.strerror}", hint="correct token.module"
        )
        report.fail("module", absent)
        return
    report.ok(f"module {module}, SHA-256 {digest}")


def _check_pin(report: Report, config: Config) -> None:
    source = settings.pin_source(config)
    if source is None:
        report.ok("no login needed (token.login: none)")
        return
    try:
        PinVerdict(source, StateDir(config.state_dir).open()).check()
    except PinSettlingError:
        pass  # one_worker waits until the file is stable
    except HsmKmsError as error:
        report.fail("PIN", error)
        return
    report.ok(f"PIN file {source.path}")


async def _check_token(report: Report, config: Config) -> None:
    try:
        async with one_worker(config) as worker:
            _describe_token(report, config, worker)
            await _check_keys(report, config, worker)
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
    report.warn(f"key {key.key_id} ({key.cipher}), CKA_ID {cka_id}: {FOREIGN}")
    click.echo(f"  hint: {FOREIGN_HINT}")


def _warn_of_odd_keys(report: Report, ring: Keyring) -> None:
    for each in ring.unidentified:
        report.warn(each.error.sentence)
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
