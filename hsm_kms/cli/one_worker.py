"""Start a short-lived worker for one command, under the same rules as the server's.

The command takes the PIN lock and obeys a rejected PIN's verdict: it never tries a PIN
that the server may not try. A PIN that is typed in travels through a memfd, not argv.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.ask import ask_secret
from hsm_kms.cli.audit import CommandAudit
from hsm_kms.cli.modules import require_module
from hsm_kms.cli.options import with_options
from hsm_kms.errors import ConfigError, PinSettlingError, TokenTimeoutError
from hsm_kms.server import settings
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.login import PinLogin
from hsm_kms.token.pin_file import STABLE_SECONDS, PinSource
from hsm_kms.token.process import Worker
from hsm_kms.users import require_service_user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from hsm_kms.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginChoice:
    """Describe how a command logs in, if not as the server does.

    Args:
        pin_file: PIN file instead of `token.pin_file`, or None.
        prompt: Ask for the PIN.
        login: Role instead of `token.login`, or None.
    """

    pin_file: Path | None = None
    prompt: bool = False
    login: str | None = None


_LOGIN_OPTIONS: Final = (
    click.option(
        "--pin-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Read the PIN from this file instead of token.pin_file.",
    ),
    click.option("--pin-prompt", is_flag=True, help="Ask for the PIN."),
    click.option(
        "--login",
        metavar="ROLE",
        help="Log in as user, crypto-user, so or 0x... instead of token.login.",
    ),
)


def login_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as `login: LoginChoice`."""

    @functools.wraps(command)
    def with_choice(
        *args: Any,
        pin_file: Path | None,
        pin_prompt: bool,
        login: str | None,
        **more: Any,
    ) -> Any:
        choice = LoginChoice(pin_file=pin_file, prompt=pin_prompt, login=login)
        return command(*args, login=choice, **more)

    return with_options(with_choice, _LOGIN_OPTIONS)


@contextlib.asynccontextmanager
async def one_worker(
    config: Config,
    choice: LoginChoice | None = None,
    *,
    read_write: bool | None = None,
    retry: bool = False,
    sessions: int = 0,
) -> AsyncIterator[Worker]:
    """Start a worker with one control session, log it in, and end it on exit.

    Args:
        config: The configuration.
        choice: Login that differs from the server's, or None.
        read_write: Overrides `token.read_write`, unless None.
        retry: Try the PIN even if it was rejected before.
        sessions: Number of further sessions that the command can open.

    Raises:
        WrongUserError: The server of this node runs as another user.
        HsmKmsError: The worker could not be started or logged in.
    """
    require_service_user(config.state_dir, config.token.pin_file)
    state = StateDir(config.state_dir, create=False).open()
    with _pin_source(config, choice or LoginChoice()) as (source, descriptors):
        audit = CommandAudit(config.audit)
        login = PinLogin(source, state, retry=retry, audit=audit)
        await _wait_until_stable(login)
        async with configured_worker(
            config, read_write=read_write, pass_fds=descriptors, sessions=sessions
        ) as worker:
            await _log_in(config, worker, login)
            yield worker


@contextlib.asynccontextmanager
async def configured_worker(
    config: Config,
    *,
    read_write: bool | None = None,
    pass_fds: Sequence[int] = (),
    sessions: int = 0,
) -> AsyncIterator[Worker]:
    """Start a worker that has loaded the module and found the token; end it on exit.

    Args:
        config: The configuration.
        read_write: Overrides `token.read_write`, unless None.
        pass_fds: More descriptors that the worker inherits.
        sessions: Number of further sessions that the command can open.

    Raises:
        HsmKmsError: The worker could not be started, or there is no such token.
    """
    require_module(config.token.module, config.token.env)
    worker = await Worker.spawn(sessions, config.token.env, pass_fds=pass_fds)
    try:
        with _patience(config):
            async with asyncio.timeout(config.token.start_timeout):
                await worker.configure(
                    settings.configure_message(config, read_write=read_write)
                )
        yield worker
    finally:
        await worker.leave()


async def log_in(config: Config, worker: Worker) -> None:
    """Log a worker in as the server would.

    Args:
        config: The configuration.
        worker: A worker that is not logged in.

    Raises:
        HsmKmsError: The PIN was rejected, or may not be tried.
    """
    state = StateDir(config.state_dir, create=False).open()
    with _pin_source(config, LoginChoice()) as (source, _):
        login = PinLogin(source, state, audit=CommandAudit(config.audit))
        await _wait_until_stable(login)
        await _log_in(config, worker, login)


async def _log_in(config: Config, worker: Worker, login: PinLogin) -> None:
    with _patience(config):
        async with asyncio.timeout(config.token.start_timeout):
            await login.login(worker)


@contextlib.contextmanager
def _patience(config: Config) -> Iterator[None]:
    """Raise `TokenTimeoutError` if the body runs out of time."""
    try:
        yield
    except TimeoutError:
        raise TokenTimeoutError(
            f"the token did not answer within {config.token.start_timeout:g} s"
        ) from None


async def _wait_until_stable(login: PinLogin) -> None:
    try:
        await login.check()
    except PinSettlingError:
        await asyncio.sleep(STABLE_SECONDS)
        await login.check()


@contextlib.contextmanager
def _pin_source(
    config: Config, choice: LoginChoice
) -> Iterator[tuple[PinSource | None, tuple[int, ...]]]:
    kind = _user_type(choice, config)
    if kind is None:
        yield None, ()
        return
    if not choice.prompt:
        path = choice.pin_file or config.token.pin_file
        if path is None:
            raise ConfigError(["no PIN: give --pin-file or --pin-prompt"])
        yield PinSource(path=path, user_type=kind), ()
        return
    descriptor = os.memfd_create("pin", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, ask_secret("PIN").encode())
        path = Path(f"/proc/self/fd/{descriptor}")
        yield PinSource(path=path, typed=True, user_type=kind), (descriptor,)
    finally:
        os.close(descriptor)


def _user_type(choice: LoginChoice, config: Config) -> int | None:
    if choice.login == "none":
        raise ConfigError(
            ["--login none is not possible; set token.login: none in the configuration"]
        )
    try:
        return settings.user_type(choice.login or config.token.login)
    except ValueError:
        raise ConfigError(["--login must be user, crypto-user, so or 0x..."]) from None
