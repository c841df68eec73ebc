"""The tokens themselves: how each is made from nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.harness.softhsm import SO_PIN, TOKEN_LABEL, softhsm_module
from tests.system.tokens import kryoptic_module
from tests.system.tokens.base import MissingTokenError, Token, library

if TYPE_CHECKING:
    from pathlib import Path


class SoftHsm(Token):
    """SoftHSM2, one store."""

    brand = "softhsm"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.module = softhsm_module()
        tokens = directory / "tokens"
        tokens.mkdir()
        conf = directory / "softhsm2.conf"
        conf.write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\n"
            "log.level = ERROR\nslots.removable = false\n"
        )
        self.env = {"SOFTHSM2_CONF": str(conf)}
        self.run(
            *("softhsm2-util", "--init-token", "--free", "--label", TOKEN_LABEL),
            *("--pin", self.pin, "--so-pin", SO_PIN),
        )


class P11Kit(SoftHsm):
    """p11-kit's proxy, with SoftHSM2 as the one module behind it."""

    brand = "p11-kit"

    def __init__(self, directory: Path) -> None:
        proxy = library("p11-kit-proxy.so", "p11-kit-modules")
        super().__init__(directory)
        config = directory / "xdg" / "pkcs11"
        (config / "modules").mkdir(parents=True)
        # `only`: the modules of the system stay out.
        (config / "pkcs11.conf").write_text("user-config: only\n")
        (config / "modules" / "softhsm.module").write_text(f"module: {self.module}\n")
        self.module = proxy
        self.env |= {"XDG_CONFIG_HOME": str(directory / "xdg")}


class Kryoptic(Token):
    """Kryoptic, with an SQLite file behind it."""

    brand = "kryoptic"

    def __init__(self, directory: Path) -> None:
        module = kryoptic_module.path()
        if not module.is_file():
            raise MissingTokenError("Kryoptic has not been built")
        super().__init__(directory)
        self.module = str(module)
        conf = directory / "kryoptic.conf"
        conf.write_text(
            '[[slots]]\nslot = 0\ndbtype = "sqlite"\n'
            f'dbargs = "{directory / "token.sql"}"\n'
        )
        self.env = {"KRYOPTIC_CONF": str(conf)}
        tool = ("pkcs11-tool", "--module", self.module, "--slot", "0")
        self.run(*tool, "--init-token", "--label", TOKEN_LABEL, "--so-pin", SO_PIN)
        self.run(
            *(*tool, "--init-pin", "--login", "--login-type", "so"),
            *("--so-pin", SO_PIN, "--pin", self.pin),
        )


class Nss(Token):
    """NSS softokn; it takes its configuration from C_Initialize's pReserved."""

    brand = "nss"

    def __init__(self, directory: Path) -> None:
        module = library("libsoftokn3.so", "libnss3", "", "nss")
        if not shutil.which("certutil"):
            raise MissingTokenError("certutil (package libnss3-tools) is not installed")
        super().__init__(directory)
        self.module = module
        database = directory / "db"
        database.mkdir()
        self.run("certutil", "-N", "-d", f"sql:{database}", "-f", str(self.pin_file))
        self.init_args = (
            f"configDir='sql:{database}' dbTokenDescription='{TOKEN_LABEL}' flags="
        )
        self.selector = {"slot": 2}  # slot 1 is softokn's own, without keys
