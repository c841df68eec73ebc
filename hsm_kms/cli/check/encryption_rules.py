"""Judge the KMS providers of an EncryptionConfiguration.

What kube-apiserver refuses fails, and so does what would keep it from this plugin;
everything else is a warning; `encryption_lists` judges the rest. The rules are those of
pkg/apis/apiserver/validation/validation_encryption.go in k8s.io/apiserver.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from hsm_kms.config.formats import format_duration, parse_go_duration
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsm_kms.cli.check.encryption_schema import EncryptionConfiguration, Kms
    from hsm_kms.config.schema import Config

_DEFAULT_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Say what is wrong, or what the operator should know.

    Args:
        place: Path in the file, as kube-apiserver writes it.
        cause: What is wrong.
        cure: What to do.
        fails: kube-apiserver would not start, or would not reach the plugin.
    """

    place: str
    cause: str
    cure: str
    fails: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """Hold one KMS provider with its place in the file.

    Args:
        kms: The provider.
        place: Path in the file.
        is_ours: Its endpoint is the socket of this configuration.
    """

    kms: Kms
    place: str
    is_ours: bool

    @property
    def api(self) -> str:
        """Return the API, which is v1 if the file says nothing."""
        return self.kms.api_version or "v1"


def plugins(found: EncryptionConfiguration, config: Config) -> list[Plugin]:
    """Return the KMS providers of a file, in order.

    Args:
        found: The file.
        config: The configuration of hsm-kms.
    """
    return [
        Plugin(
            kms=provider.kms,
            place=f"resources[{at}].providers[{number}].kms",
            is_ours=is_socket(provider.kms, config.listen.socket),
        )
        for at, entry in enumerate(found.resources)
        for number, provider in enumerate(entry.providers)
        if provider.kms is not None
    ]


def socket_of(endpoint: str) -> str:
    """Return the path that kube-apiserver takes from an endpoint; "" if none."""
    try:
        return unquote(urlsplit(endpoint).path)
    except ValueError:
        return ""


def is_socket(kms: Kms, socket: Path) -> bool:
    """Return True if the endpoint of a KMS provider is this socket."""
    path = socket_of(kms.endpoint)
    return bool(path) and os.path.realpath(path) == os.path.realpath(socket)


def names(all_: list[Plugin]) -> Iterator[Verdict]:
    """Yield names that kube-apiserver refuses, or that nobody could decode."""
    seen: set[str] = set()
    for each in all_:
        place, name, v1 = f"{each.place}.name", each.kms.name, each.api == "v1"
        if not name:
            yield Verdict(place=place, cause="is empty", cure="give the plugin a name")
        if ":" in name:
            yield Verdict(
                place=place,
                cause="contains a colon, which ends the name in a stored value",
                cure="choose another name, unless values are stored under this one",
                fails=not v1,
            )
        if name in seen:
            yield Verdict(
                place=place,
                cause="is the name of another provider, too",
                cure="give each provider a name of its own",
                # With KMS v1 only an API server that reloads the file refuses it.
                fails=not v1,
            )
        seen.add(name)


def apis(all_: list[Plugin], config: Config) -> Iterator[Verdict]:
    """Yield APIs that kube-apiserver or this plugin does not serve."""
    enabled = {"v2": config.apis.v2.enabled, "v1": config.apis.v1.enabled}
    for each in all_:
        place = f"{each.place}.apiVersion"
        if each.kms.api_version is None:
            yield Verdict(
                place=place,
                cause="is missing, and Kubernetes then takes v1",
                cure="write apiVersion: v2",
                fails=each.is_ours and not enabled["v1"],
            )
        elif each.api not in enabled:
            cure = "write apiVersion: v2"
            yield Verdict(place=place, cause="is neither v1 nor v2", cure=cure)
        elif each.is_ours and not enabled[each.api]:
            yield Verdict(
                place=place,
                cause=f"is {each.api}, and apis.{each.api}.enabled is false in the "
                "configuration of hsm-kms",
                cure=f"set apis.{each.api}.enabled: true, or use the other version",
            )
        if each.api == "v1":
            yield Verdict(
                place=place,
                cause="is v1, which Kubernetes has switched off since 1.29",
                cure="use v2, or start kube-apiserver with --feature-gates=KMSv1=true",
                fails=False,
            )


def endpoints(all_: list[Plugin], config: Config) -> Iterator[Verdict]:
    """Yield endpoints by which kube-apiserver reaches no plugin, or one twice."""
    ours = f"unix://{config.listen.socket}"
    for each in all_:
        yield from _endpoint(each)
    if not any(each.is_ours for each in all_):
        yield Verdict(
            place="resources",
            cause=f"no KMS provider has the endpoint {ours}, which is listen.socket",
            cure="correct endpoint or listen.socket; they differ only where the "
            "container of kube-apiserver has the directory at another path",
        )
    sockets = Counter((each.api, socket_of(each.kms.endpoint)) for each in all_)
    for (api, socket), count in sockets.items():
        if count > 1 and socket:
            yield Verdict(
                place="resources",
                cause=f"{count} providers of KMS {printable(api)} have the socket "
                f"{printable(socket)}: each has its own name, and "
                "decrypts only what is stored under it",
                cure="list all resources under one provider, unless values are stored "
                "under each name",
                fails=False,
            )


def _endpoint(plugin: Plugin) -> Iterator[Verdict]:
    place, endpoint = f"{plugin.place}.endpoint", plugin.kms.endpoint
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        yield Verdict(
            place=place, cause="is no URL", cure="write unix:/// and the path"
        )
        return
    if parts.scheme != "unix":
        yield Verdict(
            place=place,
            cause="is not a URL of the scheme unix",
            cure="write unix:/// and the path of the socket",
        )
    elif parts.netloc:
        yield Verdict(
            place=place,
            cause="has a host part, which Kubernetes drops: the path is "
            f"{printable(parts.path)}",
            cure="write unix:/// with three slashes, then the path",
        )
    elif not parts.path.startswith("/"):
        cure = "write unix:/// and the path of the socket"
        yield Verdict(place=place, cause="has no absolute path", cure=cure)


def timeouts(all_: list[Plugin], config: Config) -> Iterator[Verdict]:
    """Yield timeouts that are no duration, or too short for this plugin."""
    least = config.token.call_timeout
    for each in all_:
        place, seconds = f"{each.place}.timeout", seconds_of(each.kms.timeout)
        if seconds is None:
            yield Verdict(
                place=place,
                cause="is not a positive duration such as 3s or 500ms",
                cure="write 3s, or leave it out",
            )
        elif each.is_ours and seconds < least:
            yield Verdict(
                place=place,
                cause=f"is shorter than token.call_timeout ({format_duration(least)})",
                cure="make it longer, or kube-apiserver gives up before the token does",
                fails=False,
            )


def seconds_of(timeout: str | None) -> float | None:
    """Return a timeout in seconds; None if it is no positive duration of Go."""
    if timeout is None:
        return _DEFAULT_SECONDS
    try:
        return parse_go_duration(timeout) or None if "d" not in timeout else None
    except ValueError:
        return None


def cachesizes(all_: list[Plugin]) -> Iterator[Verdict]:
    """Yield cache sizes that kube-apiserver refuses."""
    for each in all_:
        place = f"{each.place}.cachesize"
        if each.api != "v1" and each.kms.cachesize is not None:
            cause = "is a setting of KMS v1, and refused in v2"
            yield Verdict(place=place, cause=cause, cure="remove it")
        if each.api == "v1" and each.kms.cachesize == 0:
            cure = "give the number of DEKs to keep, or -1 for no cache"
            yield Verdict(place=place, cause="is 0", cure=cure)
