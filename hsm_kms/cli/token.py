"""Provide `hsm-kms token`: list tokens, and try a rejected PIN once more."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from hsm_kms.cli.audit import audited
from hsm_kms.cli.modules import require_module
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.options import DEFAULT_PATH, config_option, output_option
from hsm_kms.cli.streams import tell
from hsm_kms.config import load as configuration
from hsm_kms.errors import TokenTimeoutError
from hsm_kms.ipc.messages import Configure, ListTokens, Tokens
from hsm_kms.token.errors import ACCESS
from hsm_kms.token.process import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.values import TokenSeen

SECONDS: Final = 60.0

# CK_TOKEN_INFO.flags, PKCS#11 2.40 section 3.2
_FLAGS: Final = {
    0x0000_0002: "WRITE_PROTECTED",
    0x0000_0004: "LOGIN_REQUIRED",
    0x0000_0008: "USER_PIN_INITIALIZED",
    0x0000_0100: "PROTECTED_AUTHENTICATION_PATH",
    0x0000_0400: "TOKEN_INITIALIZED",
    0x0001_0000: "USER_PIN_COUNT_LOW",
    0x0002_0000: "USER_PIN_FINAL_TRY",
    0x0004_0000: "USER_PIN_LOCKED",
    0x0008_0000: "USER_PIN_TO_BE_CHANGED",
    0x0100_0000: "ERROR_STATE",
}


def _as_mapping(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if not all(name and equals for name, equals, _ in pairs):
        raise click.BadParameter("must be NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _reachable(
    _ctx: click.Context, _param: click.Parameter, path: Path | None
) -> Path | None:
    """Refuse a module that cannot be reached; the loader would hardly say why."""
    try:
        if path is not None:
            path.stat()
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    return path


@click.group("token")
def token_group() -> None:
    """List tokens, and try a rejected PIN once more."""


@token_group.command("list")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Use the module and token.env of this file.  [default: {DEFAULT_PATH}]",
)
@click.option(
    "--module",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_reachable,
    help="Use this PKCS#11 module, and no configuration file.",
)
@click.option("--init-args", help="Argument string for C_Initialize, if needed.")
@click.option(
    "--env",
    "variables",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_as_mapping,
    help="Set an environment variable for the module. Can be repeated.",
)
@output_option
def list_tokens(
    path: Path | None,
    module: Path | None,
    init_args: str | None,
    variables: dict[str, str],
    output: str,
) -> None:
    """List the tokens of a module, the configured one unless --module is given."""
    if path is not None and module is not None:
        raise click.UsageError("--config and --module cannot be given together")
    if module is None:
        chosen = configuration.load(path or DEFAULT_PATH).token
        module = chosen.module
        init_args = chosen.init_args if init_args is None else init_args
        variables = dict(chosen.env) | variables
    require_module(module, variables)
    configure = Configure(
        module=str(module.absolute()), init_args=init_args, needs_login=False
    )
    tokens = asyncio.run(_tokens(configure, variables))
    shown = [_shown(token) for token in tokens]
    if output == "json":
        click.echo(json.dumps(shown))
        return
    _print_tokens(shown)


def _print_tokens(shown: list[dict[str, Any]]) -> None:
    for token in shown:
        click.echo(f"slot {token['slot']}")
        for name, value in token.items():
            text = ", ".join(value) if isinstance(value, list | tuple) else value
            if name != "slot":
                click.echo(f"  {name}: {text if text is not None else 'not reported'}")
    if not shown:
        tell("no slot contains a token")
    if not any("TOKEN_INITIALIZED" in token["flags"] for token in shown):
        who = f"to user {os.geteuid()} the module shows no initialised token"
        tell(f"hint: {who}; {ACCESS}")


@token_group.command("retry-pin")
@config_option
def retry_pin(path: Path) -> None:
    """Try the PIN in the PIN file once more, now.

    Use this after the token rejected the PIN, or if the server does not try the PIN
    because the token reports failed tries. A wrong PIN uses up one of the tries that
    the token allows.
    """
    config = configuration.load(path)
    with audited(config, "token retry-pin"):
        asyncio.run(_log_in_once(config))
    click.echo("the token accepts the PIN")


async def _log_in_once(config: Config) -> None:
    async with one_worker(config, retry=True):
        pass


async def _tokens(
    configure: Configure, env: Mapping[str, str]
) -> tuple[TokenSeen, ...]:
    worker = await Worker.spawn(0, env)
    try:
        async with asyncio.timeout(SECONDS):
            await worker.configure(configure)
            reply = await worker.ask(ListTokens(), SECONDS)
    except TimeoutError:
        raise TokenTimeoutError(
            f"the module did not answer within {SECONDS:g} s"
        ) from None
    finally:
        await worker.leave()
    return reply.tokens if isinstance(reply, Tokens) else ()


def _shown(token: TokenSeen) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(token)
    shown["flags"] = [name for bit, name in _FLAGS.items() if token.flags & bit]
    return shown
