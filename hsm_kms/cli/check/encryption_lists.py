"""Judge the lists of an EncryptionConfiguration: resources, and providers in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.cli.check.encryption_rules import Verdict, is_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.check.encryption_schema import EncryptionConfiguration, Entry
    from hsm_kms.config.schema import Config

_EVERYTHING: Final = "*.*"
# What is stored without being a resource of the API.
_NOT_ENCRYPTED: Final = frozenset(
    {"apiserveripinfo", "serviceipallocations", "servicenodeportallocations"}
)


def providers(found: EncryptionConfiguration) -> Iterator[Verdict]:
    """Yield list elements that do not have exactly one provider."""
    for at, entry in enumerate(found.resources):
        for number, provider in enumerate(entry.providers):
            if len(provider.kinds) != 1:
                yield Verdict(
                    place=f"resources[{at}].providers[{number}]",
                    cause=f"has {len(provider.kinds)} providers",
                    cure="write each provider as a list element of its own",
                )


def order(found: EncryptionConfiguration, config: Config) -> Iterator[Verdict]:
    """Yield entries in which this plugin does not encrypt, or identity is left."""
    for at, entry in enumerate(found.resources):
        ours = _ours(entry, config)
        if not ours:
            continue
        place, first = f"resources[{at}].providers", entry.providers[0].kinds[:1]
        if first == ["identity"]:
            yield Verdict(
                place=place,
                cause="identity is first, so objects are stored unencrypted",
                cure="put the KMS provider first, once every API server has this file",
                fails=False,
            )
        elif 0 not in ours:
            yield Verdict(
                place=place,
                cause="another provider is first, so hsm-kms only decrypts",
                cure="put hsm-kms first, once every API server has this file",
                fails=False,
            )
        elif any(each.identity for each in entry.providers):
            yield Verdict(
                place=place,
                cause="identity is left, so unencrypted objects are accepted, also "
                "those that somebody puts into etcd",
                cure="remove it, once `hsm-kms etcd scan --fail-if unencrypted` passes",
                fails=False,
            )


def _ours(entry: Entry, config: Config) -> list[int]:
    """Return at which places of an entry this plugin is."""
    return [
        number
        for number, each in enumerate(entry.providers)
        if each.kms and is_socket(each.kms, config.listen.socket)
    ]


def resources(found: EncryptionConfiguration) -> Iterator[Verdict]:
    """Yield names of resources that kube-apiserver refuses, and `*.*`."""
    for at, entry in enumerate(found.resources):
        place = f"resources[{at}].resources"
        for number, name in enumerate(entry.resources):
            if why := _why_refused(name):
                cure = "see the Kubernetes page on encrypting data at rest"
                yield Verdict(place=f"{place}[{number}]", cause=why, cure=cure)
        if len(set(entry.resources)) < len(entry.resources):
            cure = "name each resource once"
            yield Verdict(place=place, cause="name a resource twice", cure=cure)
        elif _overlap(entry.resources):
            yield Verdict(
                place=place,
                cause="overlap: one of them includes another",
                cure="list the more precise one in an entry of its own, before",
            )
        if _EVERYTHING in entry.resources:
            yield Verdict(
                place=place,
                cause="*.* encrypts everything, also what the control plane needs to "
                "start: until the plugin answers, nothing at all can be read",
                cure="list the resources that need it, or have hsm-kms start before "
                "kube-apiserver, and without help from it",
                fails=False,
            )


def _why_refused(name: str) -> str:
    resource, _, group = name.partition(".")
    if name != name.lower():
        return "has capital letters"
    if name == "*":
        return "is *, which must be *. for the core group, or *.* for everything"
    if group == "*" and resource != "*":
        return "names one resource in all groups"
    if name in _NOT_ENCRYPTED:
        return "is no resource of the API, and is never encrypted"
    if group == "events.k8s.io":
        return "is stored as events, without a group"
    return "is in a group that was removed" if group == "extensions" else ""


def _overlap(resources: list[str]) -> bool:
    groups = [each.partition(".") for each in resources]
    if len(groups) > 1 and _EVERYTHING in resources:
        return True
    whole = {group for resource, _, group in groups if resource == "*"}
    return any(resource != "*" and group in whole for resource, _, group in groups)
