"""Load the configuration file: one immutable `Config`, or all faults at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hsm_kms.config.faults import key_faults, value_faults
from hsm_kms.config.formats import format_duration
from hsm_kms.config.from_uri import expand, given_by
from hsm_kms.config.joint_rules import joint_faults
from hsm_kms.config.schema import Config, Section
from hsm_kms.config.strict_yaml import load_yaml, read_yaml
from hsm_kms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Config", "effective", "load", "load_yaml", "parse"]

MAX_FILE_BYTES = 64 * 1024
VERSION = 1

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


def load(path: Path) -> Config:
    """Read and check the configuration file.

    Raises:
        ConfigError: The file has faults. The error lists all of them; none quotes the
            file.
    """
    try:
        text = _read(path)
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {_why(error)}"]) from None
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from None


def parse(text: str) -> Config:
    """Check a configuration that is given as YAML.

    Raises:
        ConfigError: The text has faults. The error lists all of them; none quotes the
            text.
    """
    document = read_yaml(text)
    if not isinstance(document.data, dict):
        raise ConfigError(["must be a YAML mapping that begins with version: 1"])
    if fault := _later_version(document.data):
        raise ConfigError([fault])
    whole = expand(document.data)
    faults = [*key_faults(document), *joint_faults(document, whole)]
    config = None
    try:
        config = Config.model_validate(whole.data)
    except ValidationError as error:
        faults += value_faults(error, document, whole)
    if faults or config is None:
        raise ConfigError(faults)
    return config


def effective(config: Config) -> dict[str, Any]:
    """Return all settings, including defaults, without values that may be secret."""
    shown: dict[str, Any] = _plain(config)
    token = shown["token"]
    token["env"] = {
        name: value if name in _PLAIN_ENV else "***"
        for name, value in token["env"].items()
    }
    if token["init_args"] is not None:
        token["init_args"] = "***"
    # Settings that the URI gives are shown there only, as the file must have them.
    for section, key in given_by(token["uri"]) if token["uri"] is not None else ():
        shown[section][key] = [] if key == "ids" else None
    return shown


def _read(path: Path) -> str:
    # Reading a FIFO or a device could block, or never end.
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


def _why(error: OSError) -> str:
    who = f" for user {os.geteuid()}" if isinstance(error, PermissionError) else ""
    return f"{error.strerror}{who}"


def _later_version(data: Mapping[str, Any]) -> str | None:
    version = data.get("version")
    if type(version) is int and version > VERSION:
        return f"version: must be {VERSION}; a later version needs a later hsm-kms"
    return None


def _plain(value: object) -> Any:
    if isinstance(value, Section):
        return {name: _plain(part) for name, part in value}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    # Every float of the file is a duration.
    return format_duration(value) if isinstance(value, float) else value
