"""Check the rules that concern several settings together.

The rules read the raw data instead of a valid `Config`, so that their faults are
reported together with the faults of single settings. A setting of the wrong type is
skipped here, because the schema reports it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hsm_kms.config.faults import at
from hsm_kms.config.fields import parse_socket
from hsm_kms.config.formats import parse_duration
from hsm_kms.config.schema import SELECTORS, ApiV1, ApiV2, Http, Keys, Listen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hsm_kms.config.from_uri import Expansion
    from hsm_kms.config.strict_yaml import Document

_CHOICE = "uri, token_label, token_serial and slot"
_APIS: Mapping[str, ApiV2 | ApiV1] = {"v2": ApiV2(), "v1": ApiV1()}
_LOCAL = ((True, "fallback"), (True, "software"))


def joint_faults(document: Document, whole: Expansion) -> Iterator[str]:
    """Yield the faults that lie in no single key.

    Args:
        document: The parsed file.
        whole: The data with `token.uri` expanded, and the faults of that URI.
    """
    for place, message in whole.faults:
        yield at(document, place, message)
    token = document.data.get("token")
    if isinstance(token, dict):
        yield from _token_faults(document, whole, token)
    keys = whole.data.get("keys")
    if isinstance(keys, dict) and keys.get("label", "") is None and not keys.get("ids"):
        place = ("keys", "label")
        yield at(document, place, "must not be null, unless ids lists the keys")
    yield from _health_faults(document, whole)
    if all(_api(document.data, name)[0] is False for name in _APIS):
        yield at(document, ("apis",), "must have v2 or v1 enabled")
    yield from _local_fault(document)
    audit = document.data.get("audit")
    if isinstance(audit, dict) and audit.get("stdout") is True and audit.get("file"):
        yield at(document, ("audit",), "must have file or stdout: true, not both")
    if _same_socket(document.data):
        place = ("http", "admin_socket")
        yield at(
            document, place, "must not be the path of listen.socket, or of its lock"
        )


def _token_faults(
    document: Document, whole: Expansion, token: Mapping[str, Any]
) -> Iterator[str]:
    given = [name for name in SELECTORS if token.get(name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        yield at(document, ("token",), f"must have exactly one of {_CHOICE}; {found}")
    pin_file = whole.broken or whole.data["token"].get("pin_file") is not None
    if not pin_file and token.get("login") != "none":
        yield at(document, ("token",), "must have pin_file, unless login is none")
    yield from _timeout_fault(document, token)


def _health_faults(document: Document, whole: Expansion) -> Iterator[str]:
    health, keys = document.data.get("health"), whole.data.get("keys", {})
    if not isinstance(health, dict) or health.get("key") is None:
        return
    place = ("health", "key")
    if health.get("canary") == "session":
        yield at(document, place, "must be null, because canary is session")
    if isinstance(keys, dict) and keys.get("label", Keys().label) == health["key"]:
        yield at(document, place, "must not be keys.label: it is a key of its own")


def _timeout_fault(document: Document, token: Mapping[str, Any]) -> Iterator[str]:
    try:
        call = parse_duration(token.get("call_timeout", "2s"))
        hang = parse_duration(token.get("hang_timeout", "30s"))
    except ValueError:
        return  # the schema reports the field
    if hang < call:
        place = ("token", "hang_timeout")
        yield at(document, place, "must not be less than call_timeout")


def _same_socket(data: Mapping[str, Any]) -> bool:
    listen, http = data.get("listen", {}), data.get("http", {})
    if not isinstance(listen, dict) or not isinstance(http, dict):
        return False
    try:
        kms = parse_socket(listen.get("socket", str(Listen().socket)))
        admin = parse_socket(http.get("admin_socket", str(Http().admin_socket)))
    except ValueError:
        return False  # the schema reports the field
    # The server's lock file is beside its socket.
    own = {os.path.normpath(path) for path in (kms, f"{kms}.lock")}
    return os.path.normpath(admin) in own


def _local_fault(document: Document) -> Iterator[str]:
    local = document.data.get("local_keys")
    if not isinstance(local, dict) or local.get("accept_local") is not False:
        return
    apis = [name for name in _APIS if _api(document.data, name) in _LOCAL]
    if apis:
        place, named = ("local_keys", "accept_local"), " and ".join(apis)
        yield at(document, place, f"must be true, because {named} can wrap in software")


def _api(data: Mapping[str, Any], name: str) -> tuple[object, object]:
    """Return `enabled` and `wrapping` of an API; None where the type is wrong."""
    apis = data.get("apis", {})
    api = apis.get(name, {}) if isinstance(apis, dict) else None
    if not isinstance(api, dict):
        return None, None  # the schema reports the section
    default = _APIS[name]
    enabled = api.get("enabled", default.enabled)
    return enabled, api.get("wrapping", default.wrapping)
