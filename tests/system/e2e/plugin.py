"""The plugin as an operator runs it, over a SoftHSM token of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from hsm_kms.api.call import OBSERVER
from hsm_kms.api.rpc import kms_v1beta1_pb2 as v1
from hsm_kms.api.rpc import kms_v1beta1_pb2_grpc as v1_grpc
from hsm_kms.api.rpc import kms_v2_pb2 as v2
from hsm_kms.api.rpc import kms_v2_pb2_grpc as v2_grpc
from hsm_kms.http.client import read_status
from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import WORKERS
from tests.harness.processes import children_of
from tests.harness.wait import patient
from tests.system.e2e.processes import Child, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
LABEL = "e2e"
RPC_TIMEOUT = patient(10.0)  # seconds; the API server's default is 3
READY_TIMEOUT = 60.0  # seconds


def softhsm_module() -> Path | None:
    """Find SoftHSM's module, None where it or its tool is not installed."""
    named = os.environ.get("SOFTHSM2_MODULE")
    if not shutil.which("softhsm2-util"):
        return None
    places = map(Path, [named] if named else MODULES)
    return next((path for path in places if path.is_file()), None)


class Token:
    """A SoftHSM token with a random PIN, all of it below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.conf = folder / "softhsm2.conf"
        self.pin_file = folder / "pin"
        self._store = folder / "tokens"
        self._store.mkdir(parents=True)
        self._write_conf()
        pin = secrets.token_hex(8)
        self.pin_file.touch(mode=0o600)
        self.pin_file.write_text(pin)
        subprocess.run(
            [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                LABEL,
                "--so-pin",
                secrets.token_hex(8),
                "--pin",
                pin,
            ],
            env={**os.environ, "SOFTHSM2_CONF": str(self.conf)},
            check=True,
            capture_output=True,
        )

    def _write_conf(self) -> None:
        self.conf.write_text(
            f"directories.tokendir = {self._store}\n"
            "objectstore.backend = file\nlog.level = ERROR\n"
        )

    @contextmanager
    def away(self) -> Iterator[None]:
        """Take the token away, as if it were unplugged, and put it back."""
        elsewhere = self._store.with_suffix(".away")
        self._store.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self._store)


class TokenOfOthers(Token):
    """A token that other nodes use too, by a way that can be cut for one node alone.

    Args:
        token: The token.
        folder: Of this node.
    """

    def __init__(self, token: Token, folder: Path) -> None:
        self.conf = folder / "softhsm2.conf"
        self.pin_file = token.pin_file
        self._store = folder / "tokens"
        self._store.symlink_to(token._store)
        self._write_conf()


class Plugin:
    """One `hsm-kms serve`, which can be killed and started again.

    Args:
        folder: For its files.
        token: The token; a new one with a new key if None.
        env: More of its environment.
    """

    def __init__(
        self,
        folder: Path,
        token: Token | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._env = env
        self.socket = folder / "kms.sock"
        self.token = token or Token(folder / "token")
        self._folder = folder
        self._admin_socket = folder / "admin.sock"
        self.config_file = folder / "config.yaml"
        self.state_dir = folder / "state"
        self._config = self._configuration()
        self.configure()
        self._child: Child | None = None
        if token is None:
            subprocess.run(
                [*HSM_KMS, "keys", "generate", "--config", self.config_file],
                check=True,
                capture_output=True,
                timeout=READY_TIMEOUT,
            )

    def configure(self, **sections: Any) -> None:
        """Replace the configuration of a running server, with these keys in sections.

        The server, which may read the file meanwhile, never finds half of it.
        """
        for name, section in sections.items():
            if isinstance(section, dict):
                section = self._config.get(name, {}) | section  # noqa: PLW2901
            self._config[name] = section
        new = self.config_file.with_suffix(".new")
        new.write_text(json.dumps(self._config))
        new.replace(self.config_file)

    def _configuration(self) -> dict[str, Any]:
        self.state_dir.mkdir(mode=0o700)
        return {
            "version": 1,
            "state_dir": str(self.state_dir),
            "listen": {"socket": str(self.socket)},
            "apis": {"v2": {"enabled": True}, "v1": {"enabled": True}},
            "token": {
                "module": str(softhsm_module()),
                "token_label": LABEL,
                "pin_file": str(self.token.pin_file),
                "env": {"SOFTHSM2_CONF": str(self.token.conf)},
                "shared": True,
            },
            "health": {"interval": "1s"},
            "http": {"listen": None, "admin_socket": str(self._admin_socket)},
        }

    def start(self, *, ok: bool = True) -> None:
        """Start it and wait until it says ok with all workers, or anything at all.

        A worker that is killed in its login can break SoftHSM's token, and healthz is
        ok while only one of them serves.
        """
        self._child = child = Child(
            [*HSM_KMS, "serve", "--config", self.config_file],
            log=self._folder / "hsm-kms.log",
            env=self._env,
        )

        def healthy() -> bool:
            child.check()
            server = self.server()
            if ok:
                workers = server.get("workers", {}).get("ready")
                return (server.get("healthz"), workers) == ("ok", WORKERS)
            return server.get("healthz") is not None

        wait_for("ok from the plugin", healthy, timeout=READY_TIMEOUT)

    @property
    def running(self) -> bool:
        """Return True if it was started and has not ended."""
        return self._child is not None and self._child.running

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._child
        self._child.kill()

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._child and self._child.running:
            self._child.stop()

    def restart(self, *, ok: bool = True) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start(ok=ok)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Take the token away, also from the workers that hold it open."""
        with self.token.away():
            assert self._child
            for pid in children_of(self._child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            yield

    def log(self) -> str:
        """Return everything that it has logged."""
        return (self._folder / "hsm-kms.log").read_text()

    def server(self) -> dict[str, Any]:
        """Read /status of its admin socket; empty where nobody answers."""
        return read_status(self._admin_socket) or {}

    @contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix://{self.socket}", options) as channel:
            yield channel

    def status(self) -> v2.StatusResponse:
        """Look at Status over the KMS socket; only the API server really asks."""
        with self._channel() as channel:
            stub = v2_grpc.KeyManagementServiceStub(channel)
            return stub.Status(
                v2.StatusRequest(), timeout=RPC_TIMEOUT, metadata=[(OBSERVER, "1")]
            )

    def encrypt(self, plaintext: bytes) -> v2.EncryptResponse:
        """Encrypt over the KMS socket."""
        request = v2.EncryptRequest(plaintext=plaintext, uid="e2e")
        with self._channel() as channel:
            stub = v2_grpc.KeyManagementServiceStub(channel)
            return stub.Encrypt(request, timeout=RPC_TIMEOUT)

    def encrypt_v1(self, plaintext: bytes) -> bytes:
        """Encrypt through KMS v1."""
        request = v1.EncryptRequest(version="v1beta1", plain=plaintext)
        with self._channel() as channel:
            stub = v1_grpc.KeyManagementServiceStub(channel)
            return stub.Encrypt(request, timeout=RPC_TIMEOUT).cipher

    def decrypt(self, ciphertext: bytes, key_id: str) -> bytes:
        """Decrypt over the KMS socket."""
        request = v2.DecryptRequest(ciphertext=ciphertext, key_id=key_id, uid="e2e")
        with self._channel() as channel:
            stub = v2_grpc.KeyManagementServiceStub(channel)
            return stub.Decrypt(request, timeout=RPC_TIMEOUT).plaintext

    def healthz(self) -> str:
        """Return what Status says, or the error it failed with."""
        try:
            return self.status().healthz
        except grpc.RpcError as error:
            return error.details() or error.code().name

    def complaint(self, version: str) -> str:
        """Return the sentence an API server is told now, "" while all is well.

        KMS v1 has no Status: there the check is an Encrypt of four bytes.
        """
        if version == "v2":
            text = self.healthz()
            return "" if text == "ok" else text
        try:
            self.encrypt_v1(b"ping")
        except grpc.RpcError as error:
            return error.details() or error.code().name
        return ""


@contextmanager
def running_plugin(folder: Path) -> Iterator[Plugin]:
    """Run a plugin with a fresh token and key below `folder`."""
    plugin = Plugin(folder)
    try:
        plugin.start()
        yield plugin
    finally:
        plugin.stop()
