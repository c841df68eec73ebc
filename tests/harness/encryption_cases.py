"""EncryptionConfigurations with one fault each, and what `check` says of them.

A test with kube-apiserver's own loader compares what is refused there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "encryption-config-name"
API = "encryption-config-api"
ENDPOINT = "encryption-config-endpoint"
TIMEOUT = "encryption-config-timeout"
CACHESIZE = "encryption-config-cachesize"
ORDER = "encryption-config-order"
RESOURCES = "encryption-config-resources"
FILE = "encryption-config"

_KEYS = {
    "keys": [{"name": "key1", "secret": "bm90LWEtcmVhbC1rZXktbm90LWEtcmVhbC1rZXktLS0="}]
}
_AT = "resources[0].providers[0].kms"


class Case(NamedTuple):
    """One fault.

    Args:
        change: Makes it, in an EncryptionConfiguration that is right.
        step: The id of the check that finds it.
        place: Where it is.
        cause: How its description begins.
        fails: It fails; otherwise it is a warning.
        refused: kube-apiserver refuses the file.
    """

    change: Callable[[Any], object]
    step: str
    place: str
    cause: str
    fails: bool = True
    refused: bool = True


def right(socket: object) -> Any:
    """Return an EncryptionConfiguration of which nothing is to be said."""
    kms = {
        "apiVersion": "v2",
        "name": "hsm-kms",
        "endpoint": f"unix://{socket}",
        "timeout": "3s",
    }
    return {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [{"kms": kms}]}],
    }


def text_of(case: Case, socket: object) -> str:
    """Return the file of a case."""
    whole = right(socket)
    case.change(whole)
    return yaml.safe_dump(whole)


def _entry(whole: Any) -> Any:
    return whole["resources"][0]


def _kms(whole: Any) -> Any:
    return _entry(whole)["providers"][0]["kms"]


def _set(**fields: object) -> Callable[[Any], object]:
    return lambda whole: _kms(whole).update(fields)


def _listed(*names: str) -> Callable[[Any], object]:
    return lambda whole: _entry(whole).update(resources=list(names))


def _first(provider: Any) -> Callable[[Any], object]:
    return lambda whole: _entry(whole)["providers"].insert(0, provider)


def _last(provider: Any) -> Callable[[Any], object]:
    return lambda whole: _entry(whole)["providers"].append(provider)


def _another(**fields: object) -> Callable[[Any], object]:
    return lambda whole: _last({"kms": {**_kms(whole), **fields}})(whole)


def _v1(**fields: object) -> Callable[[Any], object]:
    return _set(apiVersion="v1", **fields)


CASES = {
    "another apiVersion": Case(
        lambda whole: whole.update(apiVersion="v1"),
        *(FILE, "apiVersion", "must be apiserver.config.k8s.io/v1"),
    ),
    "another kind": Case(
        lambda whole: whole.update(kind="EncryptionConfig"),
        *(FILE, "kind", "must be EncryptionConfiguration"),
    ),
    "an unknown field": Case(
        _set(cacheSize=5),
        *(FILE, _AT, "unknown field, which Kubernetes refuses from 1.31 on; did you "),
    ),
    "no resources": Case(
        lambda whole: whole.update(resources=[]),
        *(FILE, "resources", "must not be empty"),
    ),
    "no providers": Case(
        lambda whole: _entry(whole).update(providers=[]),
        *(FILE, "resources[0].providers", "must not be empty"),
    ),
    "two providers in one element": Case(
        lambda whole: _entry(whole)["providers"][0].update(identity={}),
        *(FILE, "resources[0].providers[0]", "has 2 providers"),
    ),
    "an element without provider": Case(
        _first({}), FILE, "resources[0].providers[0]", "has 0 providers"
    ),
    "a number as timeout": Case(
        _set(timeout=3), FILE, f"{_AT}.timeout", "must be text; quote numbers"
    ),
    "no name": Case(_set(name=""), NAME, f"{_AT}.name", "is empty"),
    "a name with a colon": Case(
        _set(name="a:b"), NAME, f"{_AT}.name", "contains a colon"
    ),
    "a name with a colon in v1": Case(
        _v1(name="a:b"), NAME, f"{_AT}.name", "contains a colon", False, False
    ),
    "one name twice": Case(
        _another(endpoint="unix:///other.sock"),
        *(NAME, "resources[0].providers[1].kms.name", "is the name of another"),
    ),
    "no apiVersion": Case(
        lambda whole: _kms(whole).pop("apiVersion"),
        *(API, f"{_AT}.apiVersion", "is missing, and Kubernetes then takes v1"),
        refused=False,
    ),
    "an unknown API": Case(
        _set(apiVersion="v3"), API, f"{_AT}.apiVersion", "is neither v1 nor v2"
    ),
    "v1 that is not served": Case(
        _v1(),
        *(API, f"{_AT}.apiVersion", "is v1, and apis.v1.enabled is false in the "),
        refused=False,
    ),
    "no endpoint": Case(
        _set(endpoint=""), ENDPOINT, f"{_AT}.endpoint", "is not a URL of the scheme"
    ),
    "a path as endpoint": Case(
        _set(endpoint="/run/hsm-kms/kms.sock"),
        *(ENDPOINT, f"{_AT}.endpoint", "is not a URL of the scheme unix"),
    ),
    "an endpoint with a host": Case(
        _set(endpoint="unix://run/hsm-kms/kms.sock"),
        *(ENDPOINT, f"{_AT}.endpoint", "has a host part, which Kubernetes drops: the"),
        refused=False,
    ),
    "another socket": Case(
        _set(endpoint="unix:///run/other.sock"),
        *(ENDPOINT, "resources", "no KMS provider has the endpoint unix://"),
        refused=False,
    ),
    "no KMS at all": Case(
        lambda whole: _entry(whole).update(providers=[{"identity": {}}]),
        *(ENDPOINT, "resources", "no KMS provider has the endpoint unix://"),
        refused=False,
    ),
    "two providers on one socket": Case(
        _another(name="again"),
        *(ENDPOINT, "resources", "2 providers of KMS v2 have the socket", False, False),
    ),
    "no timeout at all": Case(
        _set(timeout="0s"), TIMEOUT, f"{_AT}.timeout", "is not a positive duration"
    ),
    "a timeout in days": Case(
        _set(timeout="1d"), TIMEOUT, f"{_AT}.timeout", "is not a positive duration"
    ),
    "a short timeout": Case(
        _set(timeout="500ms"),
        *(TIMEOUT, f"{_AT}.timeout", "is shorter than token.call_timeout (2s)"),
        *(False, False),
    ),
    "a cache of v2": Case(
        _set(cachesize=100), CACHESIZE, f"{_AT}.cachesize", "is a setting of KMS v1"
    ),
    "no cache of v1": Case(_v1(cachesize=0), CACHESIZE, f"{_AT}.cachesize", "is 0"),
    "identity first": Case(
        _first({"identity": {}}),
        *(ORDER, "resources[0].providers", "identity is first, so objects are stored"),
        *(False, False),
    ),
    "another provider first": Case(
        _first({"aescbc": _KEYS}),
        *(ORDER, "resources[0].providers", "another provider is first, so hsm-kms o"),
        *(False, False),
    ),
    "identity left": Case(
        _last({"identity": {}}),
        *(ORDER, "resources[0].providers", "identity is left, so unencrypted objects"),
        *(False, False),
    ),
    "everything": Case(
        _listed("*.*"),
        *(RESOURCES, "resources[0].resources", "*.* encrypts everything, also what"),
        *(False, False),
    ),
    "a star": Case(
        _listed("*"), RESOURCES, "resources[0].resources[0]", "is *, which must be"
    ),
    "capital letters": Case(
        _listed("Secrets"), RESOURCES, "resources[0].resources[0]", "has capital lett"
    ),
    "one resource of all groups": Case(
        _listed("secrets.*"), RESOURCES, "resources[0].resources[0]", "names one reso"
    ),
    "what is no resource": Case(
        _listed("serviceipallocations"),
        *(RESOURCES, "resources[0].resources[0]", "is no resource of the API"),
    ),
    "events in their group": Case(
        _listed("events.events.k8s.io"),
        *(RESOURCES, "resources[0].resources[0]", "is stored as events"),
    ),
    "a group of the past": Case(
        _listed("ingresses.extensions"),
        *(RESOURCES, "resources[0].resources[0]", "is in a group that was removed"),
    ),
    "a resource twice": Case(
        _listed("secrets", "secrets"),
        *(RESOURCES, "resources[0].resources", "name a resource twice"),
    ),
    "resources that overlap": Case(
        _listed("secrets", "*."),
        *(RESOURCES, "resources[0].resources", "overlap: one of them includes another"),
    ),
}
