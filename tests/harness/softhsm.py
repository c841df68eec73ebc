"""SoftHSM2: its module, and a store of tokens for one test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TOKEN_LABEL = "test"  # noqa: S105 - a PKCS#11 token
PIN = "8467-Test-PIN"  # looked for in logs, so it must be unlike anything else
SO_PIN = "so-pin-9911"

_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)


def softhsm_module() -> str:
    """Path of SoftHSM2."""
    for path in _MODULES:
        if Path(path).exists():
            return path
    raise FileNotFoundError("SoftHSM2 is not installed: run `make test`")


class SoftHsm:
    """A SoftHSM2 store in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokens = directory / "tokens"
        self.tokens.mkdir(parents=True, exist_ok=True)
        self.conf = directory / "softhsm2.conf"
        self.conf.write_text(
            f"directories.tokendir = {self.tokens}\n"
            "objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
        )
        self.env = {"SOFTHSM2_CONF": str(self.conf)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a tool on this store."""
        return subprocess.run(
            command,
            env={**os.environ, **self.env},
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def init_token(self, label: str = TOKEN_LABEL, pin: str = PIN) -> None:
        """Make a token."""
        self.run(
            *("softhsm2-util", "--init-token", "--free", "--label", label),
            *("--pin", pin, "--so-pin", SO_PIN),
        )

    def import_aes(self, key: bytes, *, label: str, cka_id: bytes) -> None:
        """Import an AES key; its CKA_LOCAL is false from then on."""
        assert 0 not in key, "softhsm2-util ends a key at a NUL byte"
        file = self.directory / "key.bin"
        file.write_bytes(key)
        self.run(
            *("softhsm2-util", "--import", str(file), "--aes"),
            *("--token", TOKEN_LABEL, "--pin", PIN),
            *("--label", label, "--id", cka_id.hex()),
        )
        file.unlink()

    def pkcs11_tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run pkcs11-tool on the test token, logged in."""
        return self.run(
            *("pkcs11-tool", "--module", softhsm_module()),
            *("--token-label", TOKEN_LABEL, "--login", "--pin", PIN),
            *arguments,
        )

    def take_away(self) -> None:
        """Move the tokens out of reach."""
        self.tokens.rename(self.directory / "tokens.away")

    def put_back(self) -> None:
        """Undo `take_away`."""
        (self.directory / "tokens.away").rename(self.tokens)

    def copy(self, directory: Path) -> SoftHsm:
        """The same tokens in another store."""
        shutil.copytree(self.tokens, directory / "tokens")
        return SoftHsm(directory)
