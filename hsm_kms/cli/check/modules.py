"""Say where PKCS#11 modules usually are, and which package brings them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from hsm_kms.denials import read_hint

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
_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt")
_DEPTHS: Final = ("", "*/", "*/*/")


def advice_for(module: Path, error: OSError) -> str:
    """Return what to do about a module that cannot be read.

    Args:
        module: The configured path.
        error: Why it cannot be read.
    """
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
