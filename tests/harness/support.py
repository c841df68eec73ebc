"""Real tokens and a real server for the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import yaml

from hsm_kms.api.rpc import (
    kms_v1beta1_pb2,
    kms_v1beta1_pb2_grpc,
    kms_v2_pb2,
    kms_v2_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_LABEL = "test"  # noqa: S105 - a PKCS#11 token
PIN = "8467-Test-PIN"  # looked for in logs, so it must be unlike anything else
SO_PIN = "so-pin-9911"
SECONDS = 20.0  # how long a test waits for what should take a tenth of it

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


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The condition's first true value; fails after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"nothing came of it in {seconds:g} s: {value!r}")
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Processes that the main thread of a process started; none once it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


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


class Plugin:
    """One configuration, and the server that runs on it."""

    def __init__(
        self, directory: Path, hsm: SoftHsm, pin_file: Path, **sections: Any
    ) -> None:
        self.directory = directory
        self.hsm = hsm
        self.socket = directory / "kms.sock"
        self.config_file = directory / "config.yaml"
        self.log_file = directory / "log"
        self.state_dir = directory / "state"
        self.config: dict[str, Any] = {
            "version": 1,
            "state_dir": str(self.state_dir),
            "listen": {"socket": str(self.socket)},
            "apis": {
                "v2": {"enabled": True},
                "v1": {"enabled": True, "wrapping": "token"},
            },
            "token": {
                "module": softhsm_module(),
                "token_label": TOKEN_LABEL,
                "pin_file": str(pin_file),
                "env": dict(hsm.env),
            },
            "keys": {},
            "health": {"interval": "1s"},
            "http": {
                "listen": "127.0.0.1:0",
                "admin_socket": str(directory / "admin.sock"),
            },
            "log": {"level": "debug"},
        }
        for name, section in sections.items():
            self._merge(name, section)
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self.write_config()

    def _merge(self, name: str, section: Any) -> None:
        if isinstance(section, dict) and isinstance(self.config.get(name), dict):
            self.config[name] |= section
        else:
            self.config[name] = section

    def write_config(self) -> None:
        """Write the configuration as it is now."""
        self.config_file.write_text(yaml.safe_dump(self.config))

    # The process

    def start(self, *, listening: bool = True) -> Plugin:
        """Start `hsm-kms serve`, and wait until it listens."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hsm_kms.cli"),
                    *("serve", "--config", str(self.config_file)),
                ],
                stderr=log,
                stdout=log,
            )
        if listening:
            wait_for(lambda: self.socket.exists() or self.process.poll() is not None)
        return self

    def stop(self) -> int:
        """SIGTERM, and wait for the exit code."""
        self._close_channel()
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self._close_channel()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for the process to end."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.process = None
        return code

    def close(self) -> None:
        """Leave nothing running."""
        self._close_channel()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def worker_pids(self) -> list[int]:
        """Process ids of the token workers."""
        return children_of(self.process.pid) if self.process else []

    def log(self) -> str:
        """Everything the server wrote so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log events of this name."""
        lines = (
            json.loads(line) for line in self.log().splitlines() if line[:1] == "{"
        )
        return [line for line in lines if line.get("event") == event]

    # The client

    def channel(self) -> grpc.Channel:
        """A channel like the API server's."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(
                f"unix:{self.socket}",
                [
                    ("grpc.default_authority", "localhost"),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 100),
                ],
            )
        return self._channel

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def v2(self) -> kms_v2_pb2_grpc.KeyManagementServiceStub:
        return kms_v2_pb2_grpc.KeyManagementServiceStub(self.channel())

    @property
    def v1(self) -> kms_v1beta1_pb2_grpc.KeyManagementServiceStub:
        return kms_v1beta1_pb2_grpc.KeyManagementServiceStub(self.channel())

    def status(self, timeout: float = 3.0) -> kms_v2_pb2.StatusResponse:
        """v2 Status."""
        return self.v2.Status(
            kms_v2_pb2.StatusRequest(), timeout=timeout, wait_for_ready=True
        )

    def encrypt(
        self, plaintext: bytes, timeout: float = 3.0, uid: str = "test"
    ) -> kms_v2_pb2.EncryptResponse:
        """v2 Encrypt."""
        return self.v2.Encrypt(
            kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid=uid),
            timeout=timeout,
            wait_for_ready=True,
        )

    def decrypt(
        self, ciphertext: bytes, key_id: str, timeout: float = 3.0, uid: str = "test"
    ) -> bytes:
        """v2 Decrypt."""
        return self.v2.Decrypt(
            kms_v2_pb2.DecryptRequest(ciphertext=ciphertext, key_id=key_id, uid=uid),
            timeout=timeout,
            wait_for_ready=True,
        ).plaintext

    def v1_encrypt(self, plain: bytes, version: str = "v1beta1") -> bytes:
        """v1 Encrypt."""
        request = kms_v1beta1_pb2.EncryptRequest(version=version, plain=plain)
        return self.v1.Encrypt(request, timeout=3, wait_for_ready=True).cipher

    def v1_decrypt(self, cipher: bytes, version: str = "v1beta1") -> bytes:
        """v1 Decrypt."""
        request = kms_v1beta1_pb2.DecryptRequest(version=version, cipher=cipher)
        return self.v1.Decrypt(request, timeout=3, wait_for_ready=True).plain

    def healthz(self) -> str:
        """Status.healthz, or the code's name where the RPC fails."""
        try:
            return self.status().healthz
        except grpc.RpcError as error:
            return error.code().name

    def wait_healthz(self, wanted: str, seconds: float = SECONDS) -> None:
        """Wait until healthz contains these words, or is "ok" and nothing else."""
        if wanted == "ok":  # also a part of "token"
            wait_for(lambda: self.healthz() == "ok", seconds)
        else:
            wait_for(lambda: wanted in self.healthz(), seconds)

    # The command line

    def cli(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this configuration."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "hsm_kms.cli", *arguments),
                *("--config", str(self.config_file)),
            ],
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
        )


def code_of(call: Callable[[], Any]) -> str:
    """Name of the gRPC status code that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
