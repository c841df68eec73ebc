"""Run the process that holds the PKCS#11 module: no gRPC, no event loop, no policy.

A worker starts often, so it imports two libraries here first, without what takes most
of their time and is never used: typing_extensions, from which msgspec takes what typing
has as well, and the ASN.1 of pkcs11.util, which is for asymmetric keys.
"""

from __future__ import annotations

import sys
from types import ModuleType

from hsm_kms.imports import without


class _NoAsn1(ModuleType):
    """`pkcs11.util` with submodules that are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


with without("typing_extensions"):
    import msgspec  # noqa: F401
sys.modules.setdefault("pkcs11.util", _NoAsn1("pkcs11.util"))
