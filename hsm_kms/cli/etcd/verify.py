"""`hsm-kms etcd verify`: the restore drill, and the proof before a key goes."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hsm_kms import hardening
from hsm_kms.cli.etcd.options import etcd_options, open_source, progress_bar
from hsm_kms.cli.one_worker import LoginChoice, login_options, one_worker
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.config import load as configuration
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable, text_of
from hsm_kms.etcd.values import Provider

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.config.schema import Config
    from hsm_kms.etcd.verify import Failure, Verdict


@click.command()
@config_option
@etcd_options
@login_options
@output_option
def verify(
    path: Path,
    *,
    etcd: EtcdChoice,
    pin_file: Path | None,
    pin_prompt: bool,
    login: str | None,
    output: str,
) -> None:
    """Have the token open every wrapped key that etcd holds.

    Reads all stored objects, unwraps each distinct seed or DEK once, throws it away,
    and lists what cannot be opened and why. With a snapshot or a JSON file and a
    restored token this is the restore drill: what opens here can be read by any
    cluster that gets both.

    It wraps and unwraps under the same rules as the server: the keys that the
    configuration selects, its scope, keys.retired, keys.also_known_as. Values of
    other providers are counted and not vouched for. Nothing is written to etcd.

    Exits with 1 if anything cannot be opened, or nothing was there to be opened.
    """
    config = configuration.load(path)
    hardening.harden_process()
    choice = LoginChoice(pin_file=pin_file, prompt=pin_prompt, login=login)
    verdict = asyncio.run(_verify(config, choice, etcd))
    if output == "json":
        click.echo(json.dumps(_shown(verdict)))
    else:
        for line in _lines(verdict):
            click.echo(line)
    _conclude(verdict)


async def _verify(config: Config, choice: LoginChoice, etcd: EtcdChoice) -> Verdict:
    # cryptography takes a while to load, and no other command needs it.
    from hsm_kms.etcd.token_opener import TokenOpener  # noqa: PLC0415
    from hsm_kms.etcd.verify import Verification  # noqa: PLC0415

    async with one_worker(config, choice) as worker:
        ring = await read_ring(config, worker)
        ask = partial(worker.ask, seconds=config.token.hang_timeout)
        verification = Verification(TokenOpener(ask, ring, config.scope))
        with open_source(etcd) as source, progress_bar(source, "verifying") as step:
            return await verification.run(source, step)


def _lines(verdict: Verdict) -> Iterator[str]:
    for failure in _sorted(verdict):
        keys, objects = failure.wrapped_keys, failure.objects
        yield f"{_key_id(failure)}: {failure.why}"
        yield (
            f"  {_count(keys, 'wrapped key')} in {_count(objects, 'object')}, "
            f"such as {printable(text_of(failure.example))}"
        )
    for (provider, name), objects in verdict.others.most_common():
        named = f"by {provider} {printable(name)!r}" if name else f"by {provider}"
        by_whom = "in clear" if provider is Provider.IDENTITY else named
        yield f"not checked: {_count(objects, 'object')} {by_whom}"
    if verdict.wrapped_keys and not verdict.failed_keys and not verdict.stopped:
        yield f"{_every(verdict)} opens with this token"


def _every(verdict: Verdict) -> str:
    keys, objects = verdict.wrapped_keys, _count(verdict.objects, "object")
    if keys == 1:
        return f"the one wrapped key ({objects})"
    return f"every one of {keys:,} wrapped keys ({objects})"


def _conclude(verdict: Verdict) -> None:
    """Raise where it is not all well."""
    keys = _count(verdict.wrapped_keys, "wrapped key")
    if verdict.stopped:
        raise HsmKmsError(
            f"stopped after {_count(verdict.total, 'object')} and {keys}, of which "
            f"{verdict.failed_keys:,} cannot be opened: {verdict.stopped}",
            hint=verdict.stopped.hint,
        )
    if verdict.failed_keys:
        raise HsmKmsError(
            f"{verdict.failed_keys:,} of {keys} cannot be opened with this token: "
            f"{verdict.failed_objects:,} of {_count(verdict.objects, 'object')}",
            hint="keep every key and backup until these objects are deleted, or "
            "migrated where they can be read",
        )
    if not verdict.wrapped_keys:
        raise HsmKmsError(
            f"nothing in {_count(verdict.total, 'object')} was wrapped by hsm-kms, so "
            "nothing is proven",
            hint="see what is there with `hsm-kms etcd scan`",
        )


def _shown(verdict: Verdict) -> dict[str, Any]:
    return {
        "objects_read": verdict.total,
        "objects": verdict.objects,
        "wrapped_keys": verdict.wrapped_keys,
        "failed_keys": verdict.failed_keys,
        "failed_objects": verdict.failed_objects,
        "failures": [
            {
                "key_id": failure.key_id,
                "why": failure.why,
                "wrapped_keys": failure.wrapped_keys,
                "objects": failure.objects,
                "example": text_of(failure.example),
            }
            for failure in _sorted(verdict)
        ],
        "not_checked": [
            {"provider": str(provider), "name": name, "objects": objects}
            for (provider, name), objects in verdict.others.most_common()
        ],
        "complete": verdict.stopped is None,
    }


def _sorted(verdict: Verdict) -> list[Failure]:
    return sorted(verdict.failures.values(), key=lambda each: -each.objects)


def _key_id(failure: Failure) -> str:
    return printable(failure.key_id) or "(no key_id)"


def _count(count: int, of: str) -> str:
    return f"{count:,} {of}" + "s" * (count != 1)
