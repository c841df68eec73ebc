"""Require a PKCS#11 module that can be read, or say where it is and what brings it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.denials import read_hint
from hsm_kms.errors import TokenAbsentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Names of modules and of the Debian packages that bring them, or what else does.
_PACKAGES: Final = {
    "libsofthsm2.so": "the package softhsm2",
    "opensc-pkcs11.so": "the package opensc-pkcs11",
    "pkcs11-spy.so": "the package opensc-pkcs11",
    "libopencryptoki.so": "the package opencryptoki",
    "PKCS11_API.so": "the package opencryptoki",
    "libsoftokn3.so": "the package libnss3",
    "p11-kit-proxy.so": "the package p11-kit-modules",
    "libtpm2_pkcs11.so": "the package libtpm2-pkcs11-1",
    "yubihsm_pkcs11.so": "the package yubihsm-pkcs11",
    "libykcs11.so": "the package ykcs11",
    "libcloudhsm_pkcs11.so": "the package cloudhsm-pkcs11 of AWS",
    "libCryptoki2_64.so": "the Luna HSM client",
    "libcknfast.so": "the nShield Security World software",
    "libcs_pkcs11_R3.so": "the Utimaco CryptoServer software",
}
# Variables in which modules look for the path of their configuration.
_CONFIGURATIONS: Final = (
    "CS_PKCS11_R3_CFG",
    "ChrystokiConfigurationPath",
    "KRYOPTIC_CONF",
    "NFAST_HOME",
    "OPENSSL_CONF",
    "PKCS11SPY",
    "SOFTHSM2_CONF",
    "YUBIHSM_PKCS11_CONF",
)
_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt")
_DEPTHS: Final = ("", "*/", "*/*/")


def require_module(module: Path, env: Mapping[str, str]) -> None:
    """Require that the files can be read with which a module starts.

    The module itself would hardly say which file it misses.

    Args:
        module: The path of the module.
        env: Variables that are set for the module.

    Raises:
        TokenAbsentError: One of the files cannot be read.
    """
    try:
        module.open("rb").close()
    except OSError as error:
        raise absent(module, error) from None
    for fault in faults_of(env):
        raise fault


def absent(module: Path, error: OSError) -> TokenAbsentError:
    """Return the error for a module that cannot be read.

    Args:
        module: The path of the module.
        error: Why it cannot be read.
    """
    return TokenAbsentError(
        f"{module}: {error.strerror}", hint=_advice_for(module, error)
    )


def faults_of(env: Mapping[str, str]) -> Iterator[TokenAbsentError]:
    """Yield an error for each configuration of a module that cannot be read.

    Args:
        env: Variables that are set for the module.
    """
    for name in _CONFIGURATIONS:
        if not env.get(name):
            continue
        path = Path(env[name])
        try:
            path.stat()
            if not os.access(path, os.R_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            yield TokenAbsentError(
                f"token.env.{name} names {path}: {error.strerror}",
                hint=_cure_of(error, path),
            )


def _cure_of(error: OSError, path: Path) -> str:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return "correct token.env, or create the file as the module's manual says"
    return read_hint(error, path)


def _advice_for(module: Path, error: OSError) -> str:
    if error.errno == errno.EISDIR:
        return "correct token.module: it must name a file, not the directory of it"
    if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
        return read_hint(error, module)
    found = _elsewhere(module.name)
    if found is not None:
        return f"set token.module to {found}"
    package = _PACKAGES.get(module.name)
    if package is not None:
        return f"install {package}, or correct token.module"
    return (
        "correct token.module: the HSM's client software brings the module, often "
        "below /usr/lib or /opt"
    )


def _elsewhere(name: str) -> Path | None:
    for folder in _FOLDERS:
        for depth in _DEPTHS:
            for path in sorted(Path(folder).glob(depth + name)):
                return path
    return None
