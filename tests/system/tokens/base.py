"""Base class of all brands of token, and a server on one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import Plugin
from tests.harness.softhsm import PIN, TOKEN_LABEL

KEK_LABEL = "k8s-kek"


class MissingTokenError(Exception):
    """A program or library of the token is not installed."""


def library(name: str, package: str, *folders: str) -> str:
    """Path of a shared object, looked for where the distributions put it.

    Args:
        name: Its file name.
        package: What Debian calls the package.
        folders: Folders below the library directory, "" for that itself.
    """
    for root in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
    ):
        for folder in folders or ("",):
            path = Path(root, folder, name)
            if path.exists():
                return str(path)
    raise MissingTokenError(f"{name} (package {package}) is not installed")


class Token:
    """One token in a directory of its own.

    Args:
        directory: Where it keeps everything; made if it is not there. The PIN file
            lies beside it.

    Attributes:
        brand: Its name in this suite.
        mechanism: How hsm-kms wraps on it by itself.
        imported_policy: `keys.policy` under which a key serves that was imported.
        pin: The user's PIN.
        module: Absolute path of the PKCS#11 module.
        selector: `token_label`, `token_serial` or `slot`.
        env: What the module wants in its environment.
        init_args: pReserved of C_Initialize, or None.
        inside: Command that runs another one where the token can be seen.
    """

    brand: ClassVar[str]
    mechanism: ClassVar[str] = "aes-gcm"
    imported_policy: ClassVar[str] = "enforce"
    pin: ClassVar[str] = PIN

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.module = ""
        self.selector: dict[str, Any] = {"token_label": TOKEN_LABEL}
        self.env: dict[str, str] = {}
        self.init_args: str | None = None
        self.inside: list[str] = []
        # Beside the token: one that is old enough is read at once.
        self.pin_file = directory.parent / f"pin-{self.brand}"
        if not self.pin_file.exists():
            self.pin_file.touch(mode=0o600)
            self.pin_file.write_text(f"{self.pin}\n")

    def close(self) -> None:
        """End whatever the token runs on."""

    def run(
        self, *command: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool where this token is to be seen; it must succeed."""
        done = subprocess.run(
            [*self.inside, *command],
            env={**os.environ, **self.env},
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
        return done

    def settings(self) -> dict[str, Any]:
        """The `token` section of a configuration."""
        optional = {"init_args": self.init_args} if self.init_args else {}
        return {
            "module": self.module,
            **self.selector,
            "pin_file": str(self.pin_file),
            "env": dict(self.env),
            **optional,
        }

    def import_key(
        self, key: bytes, cka_id: bytes, *, label: str = KEK_LABEL, kind: str = "AES"
    ) -> None:
        """C_CreateObject, as a vendor's import tool would.

        Args:
            key: The bytes of it.
            cka_id: CKA_ID.
            label: CKA_LABEL.
            kind: CKA_KEY_TYPE: "AES", or "GENERIC_SECRET" for an HMAC key.
        """
        self._tool("import", key=key.hex(), id=cka_id.hex(), label=label, kind=kind)

    def import_kek(self, kek: bytes, mac: bytes | None, cka_id: bytes) -> None:
        """Import a KEK, and the HMAC key that belongs to it where there is one."""
        self.import_key(kek, cka_id)
        if mac is not None:
            label = f"{KEK_LABEL}-hmac"
            self.import_key(mac, cka_id + b"h", label=label, kind="GENERIC_SECRET")

    def attributes(self, label: str = KEK_LABEL) -> list[dict[str, bool | None]]:
        """Return the attributes of the token's AES keys with this label."""
        found: list[dict[str, bool | None]] = self._tool("attributes", label=label)
        return found

    def _tool(self, verb: str, **arguments: Any) -> Any:
        job = {"verb": verb, "token": self.settings(), "pin": self.pin, **arguments}
        # A process of its own: the tests themselves never load a module.
        command = (sys.executable, "-m", "tests.system.tokens.on_token")
        return json.loads(self.run(*command, stdin=json.dumps(job)).stdout)


class TokenPlugin(Plugin):
    """A server, and the commands, on any brand of token."""

    def __init__(self, directory: Path, token: Token, /, **sections: Any) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.token = token
        # `hsm` gives Plugin nothing but the environment, which is replaced here.
        super().__init__(directory, token, token.pin_file, **sections)  # type: ignore[arg-type]
        self.config["token"] = token.settings() | sections.get("token", {})
        self.write_config()

    def _command(self, *arguments: str) -> list[str]:
        program = [*HSM_KMS, *arguments]
        return [*self.token.inside, *program, "--config", str(self.config_file)]

    def start(self, *, listening: bool = True) -> TokenPlugin:
        """Start `hsm-kms serve`, and wait until it listens."""
        with self.log_file.open("ab") as log:
            command = self._command("serve")
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if listening:
            self.wait_listening()
        return self

    def cli(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this configuration."""
        return subprocess.run(
            self._command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
        )

    def generate(self) -> str:
        """`keys generate`; the key_id."""
        done = self.cli("keys", "generate", "-o", "json")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["key_id"])

    def listed(self) -> list[dict[str, Any]]:
        """`keys list`."""
        done = self.cli("keys", "list", "-o", "json")
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    def current(self) -> dict[str, Any]:
        """The key that `keys list` calls current."""
        (key,) = (key for key in self.listed() if key["state"] == "current")
        return key
