"""Provide `hsm-kms token`: list tokens, and try a rejected PIN once more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.config import load as configuration
from hsm_kms.errors import TokenTimeoutError
from hsm_kms.ipc.messages import Configure, ListTokens, Tokens
from hsm_kms.token.process import Worker

if TYPE_CHECKING:
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


@click.group("token")
def token_group() -> None:
    """List tokens, and try a rejected PIN once more."""


@token_group.command("list")
@click.option(
    "--module",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The PKCS#11 module.",
)
@click.option("--init-args", help="Text that the module needs in C_Initialize, if any.")
@output_option
def list_tokens(module: Path, init_args: str | None, output: str) -> None:
    """List the tokens of a module. Needs no configuration."""
    configure = Configure(
        module=str(module.absolute()), init_args=init_args, needs_login=False
    )
    tokens = asyncio.run(_tokens(configure))
    shown = [_shown(token) for token in tokens]
    if output == "json":
        click.echo(json.dumps(shown))
        return
    for token in shown:
        click.echo(f"slot {token['slot']}")
        for name, value in token.items():
            text = ", ".join(value) if isinstance(value, list | tuple) else value
            if name != "slot":
                click.echo(f"  {name}: {text if text is not None else 'not reported'}")
    if not shown:
        click.echo("no slot holds a token", err=True)


@token_group.command("retry-pin")
@config_option
def retry_pin(path: Path) -> None:
    """Try the PIN in the PIN file once more, now.

    Use this after the token rejected the PIN, or if the server does not try the PIN
    because the token reports failed tries. A wrong PIN uses up one of the tries that
    the token allows.
    """
    config = configuration.load(path)
    asyncio.run(_log_in_once(config))
    click.echo("the token accepts the PIN")


async def _log_in_once(config: Any) -> None:
    async with one_worker(config, retry=True):
        pass


async def _tokens(configure: Configure) -> tuple[TokenSeen, ...]:
    worker = await Worker.spawn(0, {})
    try:
        async with asyncio.timeout(SECONDS):
            await worker.configure(configure)
            reply = await worker.ask(ListTokens(), SECONDS)
    except TimeoutError:
        raise TokenTimeoutError(f"no answer within {SECONDS:g} s") from None
    finally:
        await worker.leave()
    return reply.tokens if isinstance(reply, Tokens) else ()


def _shown(token: TokenSeen) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(token)
    shown["flags"] = [name for bit, name in _FLAGS.items() if token.flags & bit]
    return shown
