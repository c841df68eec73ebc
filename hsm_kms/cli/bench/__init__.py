"""Provide `hsm-kms bench`: measure the configured token, carefully.

`keys` chooses what is encrypted under, `load` makes the calls, and `answers` says what
the figures mean.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.ask import confirm, require_terminal
from hsm_kms.cli.bench import answers
from hsm_kms.cli.bench.beside import Look, within_the_token
from hsm_kms.cli.bench.keys import CurrentKek, TemporaryKeys
from hsm_kms.cli.bench.load import Limits, Load
from hsm_kms.cli.keys.options import Given, common_options, yes_option
from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.options import SECONDS_TYPE, positive
from hsm_kms.cli.streams import tell
from hsm_kms.errors import HsmKmsError, MechanismError
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.wrapping.nonce_budget import NonceBudget

if TYPE_CHECKING:
    from hsm_kms.cli.bench.keys import Keys
    from hsm_kms.cli.bench.load import Measured
    from hsm_kms.config.schema import Config
    from hsm_kms.token.process import Worker

_MOST_SECONDS: Final = 300.0


def _bounded(context: click.Context, option: click.Parameter, given: float) -> float:
    if positive(context, option, given) > _MOST_SECONDS:
        raise click.BadParameter(f"must be at most {_MOST_SECONDS:g}s")
    return given


@click.command()
@click.option(
    "--sessions",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Open at most this many sessions.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 100_000),
    default=500,
    show_default=True,
    help="Make at most this many encryptions and decryptions per second.",
)
@click.option(
    "--time",
    "seconds",
    type=SECONDS_TYPE,
    callback=_bounded,
    metavar="DURATION",
    default="20s",
    show_default=True,
    help="Measure for at most this long.",
)
@click.option(
    "--secrets",
    type=click.IntRange(1, 10_000_000),
    default=10_000,
    show_default=True,
    help="Say what a start of the API server costs with this many Secrets.",
)
@click.option(
    "--with-kek",
    is_flag=True,
    help="Encrypt under the current key if the token generates no temporary one.",
)
@yes_option
@common_options
def bench(  # noqa: PLR0913 - one per option
    given: Given,
    *,
    sessions: int,
    rate: int,
    seconds: float,
    secrets: int,
    with_kek: bool,
    yes: bool,
) -> None:
    """Measure how fast the token is, and say if that is enough.

    Opens one session, then more, beside those of a running server, and encrypts and
    decrypts random bytes under a temporary key, which the token never stores. Says if
    the token is fast enough, how many sessions pay off, and what a start of the API
    server costs. Asks before it begins, and stops at the first error. Exits with 1 if
    it was stopped, or if the token is too slow.
    """
    limits = Limits(
        sessions=sessions,
        rate=rate,
        seconds=seconds,
        call_timeout=given.config.token.call_timeout,
        start_timeout=given.config.token.start_timeout,
    )
    _ask(limits, with_kek=with_kek, yes=yes)
    measured, name = asyncio.run(_measure(given, limits, with_kek=with_kek))
    report = answers.judge(given.config, measured, secrets)
    if given.as_json:
        shown = report.as_json() | {"key": name} | answers.as_json(measured, secrets)
        click.echo(json.dumps(shown))
    else:
        click.echo(f"measured with {name}, mechanism {measured.mechanism}")
        for line in answers.table(measured.steps):
            click.echo(line)
        report.show()
    sys.exit(1 if report.failures else 0)


def _ask(limits: Limits, *, with_kek: bool, yes: bool) -> None:
    if yes:
        return
    key = "temporary keys, which the token never stores"
    if with_kek:
        key += ", or with the current key if it generates none"
    tell(
        f"This measures the token for at most {limits.seconds:g} s with at most "
        f"{limits.sessions} sessions, beside those of a running server. It makes at "
        f"most {limits.rate} encryptions and decryptions a second, with {key}.",
        "Requests of a running server can take longer meanwhile.",
    )
    require_terminal("give --yes")
    confirm("Measure now?", yes=yes)


async def _measure(
    given: Given, limits: Limits, *, with_kek: bool
) -> tuple[Measured, str]:
    """Return what was measured, and with which key."""
    config = given.config
    look = Look(config)
    await look.begin()
    async with one_worker(config, given.login, sessions=limits.sessions) as worker:
        limits = within_the_token(config, worker, limits)
        keys: Keys = TemporaryKeys(config)
        load = Load(worker, keys, limits, look.again)
        try:
            await load.first()
        except HsmKmsError as error:
            if error.function != "C_GenerateKey" and not isinstance(
                error, MechanismError
            ):
                raise
            if not with_kek:
                raise HsmKmsError(
                    f"the token generates no temporary key: {error}",
                    hint="to measure with the current key, give --with-kek; each "
                    "encryption then counts in the nonce budget of the key",
                ) from None
            tell(f"the token generates no temporary key: {error}")
        else:
            return await load.measure(), keys.name
        return await _measure_with_kek(config, worker, limits, look)


async def _measure_with_kek(
    config: Config, worker: Worker, limits: Limits, look: Look
) -> tuple[Measured, str]:
    budget = NonceBudget(StateDir(config.state_dir, create=False).open())
    try:
        keys = await CurrentKek.read(config, worker, budget)
        tell(f"warning: measuring with {keys.name}; its nonce budget counts that")
        load = Load(worker, keys, limits, look.again)
        await load.first()
        return await load.measure(), keys.name
    finally:
        await budget.close()
