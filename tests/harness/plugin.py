"""A server process on a token, and a client of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
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
from hsm_kms.http.client import UnixConnection
from tests.harness import command_line, fork_server
from tests.harness.processes import children_of
from tests.harness.softhsm import PIN, SO_PIN, TOKEN_LABEL, SoftHsm, softhsm_module
from tests.harness.spelled import found
from tests.harness.wait import SECONDS, patient, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPConnection

PINS = (PIN.encode(), SO_PIN.encode())  # no log or page may hold them
WORKERS = 2  # the default of `token.workers`
RPC_SECONDS = 10.0  # three times as long as kube-apiserver waits


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
        # As an installation does: besides it, only `serve` creates the directory.
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
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
                "workers": 1,  # a test that needs the usual two says so
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
            self.merge(name, section)
        self.process: subprocess.Popen[bytes] | fork_server.Forked | None = None
        self._channel: grpc.Channel | None = None
        self.write_config()

    @property
    def workers(self) -> int:
        """How many token workers the configuration asks for."""
        return int(self.config["token"].get("workers", WORKERS))

    def merge(self, name: str, section: Any) -> None:
        """Change these settings of a section; `write_config` writes them."""
        if isinstance(section, dict) and isinstance(self.config.get(name), dict):
            self.config[name] |= section
        else:
            self.config[name] = section

    def write_config(self, text: str | None = None) -> None:
        """Write the configuration as it is now, or this text.

        The file is replaced: a server that reads it meanwhile never finds half of it.
        """
        new = self.config_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(self.config) if text is None else text)
        new.replace(self.config_file)

    # The process

    def start(self, *, listening: bool = True, spawn: bool = False) -> Plugin:
        """Start `hsm-kms serve`.

        Args:
            listening: Wait until it listens on all its sockets, or has ended.
            spawn: Start a new interpreter instead of a fork of one, for a test that
                looks at the process itself.
        """
        command = ("serve", "--config", str(self.config_file))
        started: subprocess.Popen[bytes] | fork_server.Forked
        with self.log_file.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            if spawn:
                whole = [*command_line.HSM_KMS, *command]
                started = subprocess.Popen(whole, stderr=log, stdout=log)
            else:
                streams = (nothing.fileno(), log.fileno(), log.fileno())
                started = fork_server.start(command_line.PYTHON, command, streams)
        self.process = started
        if listening:
            self.wait_listening()
        return self

    def wait_listening(self) -> None:
        """Wait until the server listens on all its sockets, or has ended.

        The admin socket comes last. It is connected to, as a server that was killed
        leaves the file.
        """
        process, admin = self.process, self.directory / "admin.sock"
        assert process is not None
        wait_for(lambda: process.poll() is not None or _accepts(admin))

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
        code = self.process.wait(patient(seconds))
        self.process = None
        return code

    def close(self) -> None:
        """Leave nothing running."""
        self._close_channel()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(patient())
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def worker_pids(self) -> list[int]:
        """Process ids of the token workers."""
        return children_of(self.process.pid) if self.process else []

    def log(self) -> str:
        """Everything the server wrote so far."""
        file = self.log_file
        return file.read_text(errors="replace") if file.is_file() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log events of this name."""
        complete = (
            self.log().rpartition("\n")[0].splitlines()
        )  # the last is half written
        lines = (json.loads(line) for line in complete if line[:1] == "{")
        return [line for line in lines if line.get("event") == event]

    # Probes, metrics and its own status

    def page(self, path: str) -> tuple[int, str]:
        """Return status code and body of a page on the admin socket."""
        code, text = get(UnixConnection(self.directory / "admin.sock", patient()), path)
        assert set() == found(PINS, text)
        return code, text

    def http_port(self) -> int:
        """Return the TCP port of the probes and metrics."""
        events = self.events("listening for HTTP")
        return int([each["port"] for each in events if each["port"]][-1])

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
        """A client of API v2."""
        return kms_v2_pb2_grpc.KeyManagementServiceStub(self.channel())  # type: ignore[no-untyped-call]

    @property
    def v1(self) -> kms_v1beta1_pb2_grpc.KeyManagementServiceStub:
        """A client of API v1."""
        return kms_v1beta1_pb2_grpc.KeyManagementServiceStub(self.channel())  # type: ignore[no-untyped-call]

    def status(self, timeout: float = RPC_SECONDS) -> kms_v2_pb2.StatusResponse:
        """v2 Status."""
        response: kms_v2_pb2.StatusResponse = self.v2.Status(
            kms_v2_pb2.StatusRequest(), timeout=patient(timeout), wait_for_ready=True
        )
        return response

    def encrypt(
        self, plaintext: bytes, timeout: float = RPC_SECONDS, uid: str = "test"
    ) -> kms_v2_pb2.EncryptResponse:
        """v2 Encrypt."""
        response: kms_v2_pb2.EncryptResponse = self.v2.Encrypt(
            kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid=uid),
            timeout=patient(timeout),
            wait_for_ready=True,
        )
        return response

    def encrypt_at_once(self, plaintext: bytes, count: int) -> list[str]:
        """Send v2 Encrypts together; return the name of each one's status code."""
        request = kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid="test")
        sent = [
            self.v2.Encrypt.future(
                request, timeout=patient(RPC_SECONDS), wait_for_ready=True
            )
            for _ in range(count)
        ]
        return [code_of(call.result) for call in sent]

    def decrypt(
        self,
        ciphertext: bytes,
        key_id: str,
        timeout: float = RPC_SECONDS,
        uid: str = "test",
    ) -> bytes:
        """v2 Decrypt."""
        response: kms_v2_pb2.DecryptResponse = self.v2.Decrypt(
            kms_v2_pb2.DecryptRequest(ciphertext=ciphertext, key_id=key_id, uid=uid),
            timeout=patient(timeout),
            wait_for_ready=True,
        )
        return response.plaintext

    def v1_encrypt(self, plain: bytes, version: str = "v1beta1") -> bytes:
        """v1 Encrypt."""
        request = kms_v1beta1_pb2.EncryptRequest(version=version, plain=plain)
        response: kms_v1beta1_pb2.EncryptResponse = self.v1.Encrypt(
            request, timeout=patient(RPC_SECONDS), wait_for_ready=True
        )
        return response.cipher

    def v1_decrypt(self, cipher: bytes, version: str = "v1beta1") -> bytes:
        """v1 Decrypt."""
        request = kms_v1beta1_pb2.DecryptRequest(version=version, cipher=cipher)
        response: kms_v1beta1_pb2.DecryptResponse = self.v1.Decrypt(
            request, timeout=patient(RPC_SECONDS), wait_for_ready=True
        )
        return response.plain

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
        self, *arguments: str, stdin: str = "", spawn: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this configuration.

        Args:
            arguments: The command and its options.
            stdin: What it can read.
            spawn: Run it in a new interpreter, for a test that looks at the process
                itself. Otherwise it runs in this process, or, if an event loop runs
                here or another installation is tested, in a fork.
        """
        command = (*arguments, "--config", str(self.config_file))
        if not spawn and arguments[0] != "serve":
            run = command_line.run if _can_run_here() else command_line.run_fork
            return run(*command, stdin=stdin)
        return subprocess.run(
            [*command_line.HSM_KMS, *command],
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=patient(60),
        )

    def hint(self, text: str) -> str:
        """Return the hint as a command prints it that was run by `cli`."""
        config = f" --config {self.config_file}`"
        return re.sub("(`hsm-kms [^`]*)`", lambda named: named[1] + config, text)


def get(connection: HTTPConnection, path: str) -> tuple[int, str]:
    """Return status code and body of a page, and close the connection."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _accepts(path: Path) -> bool:
    """Return True if a unix socket accepts connections."""
    connection = UnixConnection(path, patient())
    try:
        connection.connect()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    else:
        return True
    finally:
        connection.close()


def beside(hsm: SoftHsm, pin_file: Path, **sections: Any) -> Plugin:
    """A server whose files are in a folder of its token's directory; not started."""
    directory = hsm.directory / "p"
    directory.mkdir(mode=0o700)
    return Plugin(directory, hsm, pin_file, **sections)


def _can_run_here() -> bool:
    """Return True if no event loop or other installation is involved."""
    if command_line.PYTHON != sys.executable:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def code_of(call: Callable[[], Any]) -> str:
    """Name of the gRPC status code that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
