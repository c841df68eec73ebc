"""Provide `hsm-kms etcd verify`: prove that the token decrypts what etcd holds."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import etcd_options, open_source
from hsm_kms.cli.etcd.progress import progress_bar
from hsm_kms.cli.one_worker import login_options, one_worker
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.config import load as configuration
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.refusals import NOT_AUTHENTIC
from hsm_kms.etcd.text import count_of, printable, text_of
from hsm_kms.etcd.values import Provider
from hsm_kms.interrupts import interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.cli.one_worker import LoginChoice
    from hsm_kms.config.schema import Config
    from hsm_kms.etcd.verify import Failure, Verdict


@click.command(cls=EtcdCommand)
@config_option
@etcd_options
@login_options
@output_option
def verify(
    path: Path,
    *,
    etcd: EtcdChoice,
    login: LoginChoice,
    output: str,
) -> None:
    """Have the token decrypt every wrapped key that etcd holds.

    Reads all stored objects, decrypts each distinct seed or DEK once, discards it,
    and lists what cannot be decrypted and why. Run this with a snapshot or a JSON
    file and a restored token as a restore drill: a cluster that gets both can read
    everything that can be decrypted here.

    The rules are those of the server: the keys that the configuration selects, its
    scope, keys.retired, keys.also_known_as and local_keys.accept_local. Values of
    other providers are counted but not checked. Writes nothing to etcd.

    Exits with 1 if any wrapped key cannot be decrypted, or if there is none.
    """
    config = configuration.load(path)
    verdict = asyncio.run(verify_stored(config, login, etcd))
    if output == "json":
        click.echo(json.dumps(_shown(verdict)))
    else:
        for line in _lines(verdict):
            click.echo(line)
    conclude(verdict)


async def verify_stored(
    config: Config, login: LoginChoice, etcd: EtcdChoice
) -> Verdict:
    """Have the token decrypt every wrapped key that etcd holds.

    Args:
        config: The configuration.
        login: How to log in.
        etcd: The etcd to read.

    Raises:
        HsmKmsError: The token cannot be used, or etcd cannot be read.
    """
    # Only this command needs cryptography, which takes long to load.
    from hsm_kms.etcd.token_opener import TokenOpener  # noqa: PLC0415
    from hsm_kms.etcd.verify import Verification  # noqa: PLC0415

    async with one_worker(config, login) as worker:
        ring = await read_ring(config, worker)
        ask = partial(worker.ask, seconds=config.token.hang_timeout)
        local = config.local_keys.accept_local
        opener = TokenOpener(ask, ring, config.scope, accept_local=local)
        verification = Verification(opener)
        source = open_source(etcd)
        # A read of etcd blocks the event loop, which would not handle Ctrl-C meanwhile.
        with interruptible(), source, progress_bar(source, "verifying") as step:
            return await verification.run(source, step)


def _lines(verdict: Verdict) -> Iterator[str]:
    for failure in _sorted(verdict):
        keys, objects = failure.wrapped_keys, failure.objects
        yield f"{_key_id(failure)}: {failure.reason}"
        yield (
            f"  {count_of(keys, 'wrapped key')} in {count_of(objects)}, "
            f"such as {printable(text_of(failure.example))}"
        )
    for (provider, name), objects in verdict.others.most_common():
        named = f"by {provider} {printable(name)!r}" if name else f"by {provider}"
        by_whom = "unencrypted" if provider is Provider.IDENTITY else named
        yield f"not checked: {count_of(objects)} {by_whom}"
    if verdict.wrapped_keys and not verdict.failed_keys and not verdict.stopped:
        yield f"{every(verdict)} can be decrypted with this token"


def every(verdict: Verdict) -> str:
    """Return how many wrapped keys there are, in words."""
    keys, objects = verdict.wrapped_keys, count_of(verdict.objects)
    if keys == 1:
        return f"the one wrapped key ({objects})"
    return f"each of {keys:,} wrapped keys ({objects})"


def conclude(verdict: Verdict) -> None:
    """Raise an error unless every wrapped key could be decrypted.

    Raises:
        HsmKmsError: A wrapped key cannot be decrypted, or there is none.
    """
    keys = count_of(verdict.wrapped_keys, "wrapped key")
    if verdict.stopped:
        raise HsmKmsError(
            f"stopped after {count_of(verdict.total)} and {keys}, of which "
            f"{verdict.failed_keys:,} cannot be decrypted: {verdict.stopped}",
            hint=verdict.stopped.hint,
        )
    if verdict.failed_keys:
        raise HsmKmsError(
            f"{verdict.failed_keys:,} of {keys} cannot be decrypted with this token: "
            f"{verdict.failed_objects:,} of {count_of(verdict.objects)}",
            hint=_cure(verdict),
        )
    if not verdict.wrapped_keys:
        raise HsmKmsError(
            f"nothing in {count_of(verdict.total)} was wrapped by hsm-kms, so "
            "nothing is proven",
            hint="run `hsm-kms etcd scan` to see what is stored",
        )


def _cure(verdict: Verdict) -> str:
    keep = (
        "keep every key and backup until these objects are deleted, or re-encrypted "
        "where they can be read"
    )
    reasons = {each.reason for each in verdict.failures.values()}
    if NOT_AUTHENTIC not in reasons:
        return keep
    return (
        "see whether `scope` in the configuration is that of the cluster that "
        f"encrypted what is not authentic; if it is, {keep}"
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
                "reason": failure.reason,
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
