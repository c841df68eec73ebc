"""The configuration file: YAML in, one frozen `Config` or all faults at once out.

No fault quotes what the file holds, neither a value nor an unknown key: a PIN
may stand where it should not, and faults end up in logs. A path made of known
keys and the line number say where to look.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hsm_kms.config.fields import parse_socket
from hsm_kms.config.formats import format_duration, parse_duration
from hsm_kms.config.from_uri import expand, said_by
from hsm_kms.config.schema import (
    ApiV1,
    ApiV2,
    Config,
    Http,
    Listen,
    Section,
    sections,
)
from hsm_kms.config.strict_yaml import load_yaml, read_yaml
from hsm_kms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

    from hsm_kms.config.from_uri import Expansion
    from hsm_kms.config.strict_yaml import Document

__all__ = ["Config", "effective", "load", "load_yaml", "parse"]

MAX_FILE_BYTES = 64 * 1024
VERSION = 1

_SELECTORS = ("uri", "token_label", "token_serial", "slot")
_APIS: Mapping[str, ApiV2 | ApiV1] = {"v2": ApiV2(), "v1": ApiV1()}
_LOCAL = ((True, "fallback"), (True, "software"))
_CHOICE = "uri, token_label, token_serial and slot"
_SECTIONS = sections()
_KNOWN = {name for section in _SECTIONS.values() for name in section.model_fields}

# Variables that vendors document as the path of their own configuration.
_PLAIN_ENV = {
    "CS_PKCS11_R3_CFG",
    "ChrystokiConfigurationPath",
    "KRYOPTIC_CONF",
    "LD_LIBRARY_PATH",
    "NFAST_HOME",
    "OPENSSL_CONF",
    "PKCS11SPY",
    "PKCS11SPY_OUTPUT",
    "SOFTHSM2_CONF",
    "YUBIHSM_PKCS11_CONF",
}

_SENTENCES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "missing": "is missing",
    "model_type": "must be a mapping",
    "string_unicode": "must be text",
    "string_type": "must be text; quote numbers, yes and no",
}


def load(path: Path) -> Config:
    """Read the file and check it whole.

    Raises:
        ConfigError: With every fault, none of which quotes the file.
    """
    try:
        return parse(_read(path))
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None


def parse(text: str) -> Config:
    """Check a whole configuration given as YAML.

    Raises:
        ConfigError: With every fault, none of which quotes the text.
    """
    document = read_yaml(text)
    if not isinstance(document.data, dict):
        raise ConfigError(["must be a YAML mapping that begins with version: 1"])
    if fault := _from_the_future(document.data):
        raise ConfigError([fault])
    whole = expand(document.data)
    faults = [*_key_faults(document), *_joint_faults(document, whole)]
    config = None
    try:
        config = Config.model_validate(whole.data)
    except ValidationError as error:
        faults += _value_faults(error, document, whole)
    if faults or config is None:
        raise ConfigError(faults)
    return config


def effective(config: Config) -> dict[str, Any]:
    """What is in force, defaults included, without what may be a secret."""
    shown: dict[str, Any] = _plain(config)
    token = shown["token"]
    token["env"] = {
        name: value if name in _PLAIN_ENV else "***"
        for name, value in token["env"].items()
    }
    if token["init_args"] is not None:
        token["init_args"] = "***"
    # Each thing once: what the URI says is shown there.
    for section, key in said_by(token["uri"]) if token["uri"] is not None else ():
        shown[section][key] = [] if key == "ids" else None
    return shown


def _read(path: Path) -> str:
    # A FIFO or a device would block or never end.
    if path.exists() and not path.is_file():
        raise ConfigError([f"{path} is not a regular file"])
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB"])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path} is not UTF-8 text (line {line})"]) from None


def _from_the_future(data: Mapping[str, Any]) -> str | None:
    version = data.get("version")
    if type(version) is int and version > VERSION:
        return (
            f"version: the file is written for a later hsm-kms; this one reads "
            f"version {VERSION}"
        )
    return None


def _key_faults(document: Document) -> Iterator[str]:
    for place, first, second in document.twice:
        what = "given twice" if place[-1] in _KNOWN else "holds an unknown key twice"
        yield f"{_dotted(place)}: {what}, on lines {first} and {second}"
    for line in document.not_text:
        yield f"a key is not text (line {line})"


def _joint_faults(document: Document, whole: Expansion) -> Iterator[str]:
    """Faults that lie in no single key.

    Looked for in the raw mapping, so that they are told together with the rest.
    """
    for place, sentence in whole.faults:
        yield _at(document, place, sentence)
    token = document.data.get("token")
    if isinstance(token, dict):
        given = [name for name in _SELECTORS if token.get(name) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none"
            yield _at(
                document, ("token",), f"must have exactly one of {_CHOICE}; {found}"
            )
        pin_file = whole.broken or whole.data["token"].get("pin_file") is not None
        if not pin_file and token.get("login") != "none":
            yield _at(document, ("token",), "must have pin_file, unless login is none")
        yield from _timeout_fault(document, token)
    keys = whole.data.get("keys")
    if isinstance(keys, dict) and keys.get("label", "") is None and not keys.get("ids"):
        place = ("keys", "label")
        yield _at(document, place, "must not be null, unless ids lists the keys")
    if all(_api(document.data, name)[0] is False for name in _APIS):
        yield _at(document, ("apis",), "must have v2 or v1 enabled")
    yield from _local_fault(document)
    if _same_socket(document.data):
        place = ("http", "admin_socket")
        yield _at(
            document, place, "must not be the path of listen.socket, or of its lock"
        )


def _timeout_fault(document: Document, token: Mapping[str, Any]) -> Iterator[str]:
    try:
        call = parse_duration(token.get("call_timeout", "2s"))
        hang = parse_duration(token.get("hang_timeout", "30s"))
    except ValueError:
        return  # told by the field itself
    if hang < call:
        place = ("token", "hang_timeout")
        yield _at(document, place, "must not be less than call_timeout")


def _same_socket(data: Mapping[str, Any]) -> bool:
    listen, http = data.get("listen", {}), data.get("http", {})
    if not isinstance(listen, dict) or not isinstance(http, dict):
        return False
    try:
        kms = parse_socket(listen.get("socket", str(Listen().socket)))
        admin = parse_socket(http.get("admin_socket", str(Http().admin_socket)))
    except ValueError:
        return False  # told by the field itself
    # The server's lock file lies beside its socket.
    own = {os.path.normpath(path) for path in (kms, f"{kms}.lock")}
    return os.path.normpath(admin) in own


def _local_fault(document: Document) -> Iterator[str]:
    local = document.data.get("local_keys")
    if not isinstance(local, dict) or local.get("accept_local") is not False:
        return
    apis = [name for name in _APIS if _api(document.data, name) in _LOCAL]
    if apis:
        place, named = ("local_keys", "accept_local"), " and ".join(apis)
        yield _at(document, place, f"must be true: {named} may wrap in software")


def _api(data: Mapping[str, Any], name: str) -> tuple[object, object]:
    """Whether an API is enabled, and its wrapping, as far as the file can tell."""
    apis = data.get("apis", {})
    api = apis.get(name, {}) if isinstance(apis, dict) else None
    if not isinstance(api, dict):
        return None, None  # told by the section itself
    default = _APIS[name]
    enabled = api.get("enabled", default.enabled)
    return enabled, api.get("wrapping", default.wrapping)


def _value_faults(
    error: ValidationError, document: Document, whole: Expansion
) -> Iterator[str]:
    for entry in error.errors():
        # Without the number of an item: its list has a line of its own.
        place = tuple(part for part in entry["loc"] if isinstance(part, str))
        if whole.broken and place == ("token", "module") and entry["type"] == "missing":
            continue  # the URI may have named it
        yield _at(document, place, _sentence(entry, place))


def _sentence(entry: ErrorDetails, place: tuple[str, ...]) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(place)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}".replace("'", "")
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}"
    return _SENTENCES.get(kind, "is not valid")


def _unknown_key(place: tuple[str, ...]) -> str:
    name = place[-1]
    if "pin" in name.lower().split("_"):
        return "unknown key; a PIN is never written here, but in pin_file"
    path = ".".join(place[:-1])
    near = difflib.get_close_matches(name, _SECTIONS[path].model_fields, n=1)
    if near:
        return f"unknown key; is {near[0]} meant?"
    homes = [path for path, kind in _SECTIONS.items() if name in kind.model_fields]
    if homes:
        return f"unknown key here; {name} belongs under {homes[0] or 'the top level'}"
    return "unknown key"


def _at(document: Document, place: tuple[str, ...], sentence: str) -> str:
    line = document.lines.get(place)
    where = f" (line {line})" if line else ""
    return f"{_dotted(place)}: {sentence}{where}"


def _dotted(place: tuple[str, ...]) -> str:
    """The path as far as it is made of keys that we know."""
    known = []
    for part in place:
        if part not in _KNOWN:
            break
        known.append(part)
    return ".".join(known) or "top level"


def _plain(value: object) -> Any:
    if isinstance(value, Section):
        return {name: _plain(part) for name, part in value}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    # Every float of the file is a duration.
    return format_duration(value) if isinstance(value, float) else value
