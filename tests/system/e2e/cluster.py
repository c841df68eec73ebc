"""A real kube-apiserver on a free loopback port."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.harness.wait import patient
from tests.system.e2e.processes import (
    START_TIMEOUT,
    Child,
    awaited,
    free_ports,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.system.e2e.binaries import Binaries
    from tests.system.e2e.etcd import Etcd

REQUEST_TIMEOUT = patient(60.0)  # seconds
UNSAFE = "--feature-gates=AllowUnsafeMalformedObjectDeletion=true"
"""Flag with which kube-apiserver deletes what it cannot read."""


class ApiServer:
    """A kube-apiserver that can be started again with another configuration.

    Args:
        binaries: The programs.
        etcd: Where it stores.
        folder: For certificates, tokens, logs.
        user: What comes before the program, to run it as another user.
    """

    def __init__(
        self, binaries: Binaries, etcd: Etcd, folder: Path, user: Sequence[str] = ()
    ) -> None:
        self._binaries = binaries
        self._etcd = etcd
        self._folder = folder
        self._user = user
        self._token = secrets.token_hex(16)
        self._encryption: Path | None = None
        self._more_flags: tuple[str, ...] = ()
        self._child: Child | None = None
        self._port = 0
        self._kept_port = 0  # clients find the server again after a restart
        (folder / "sa.key").write_bytes(_rsa_key())
        (folder / "tokens.csv").write_text(f'{self._token},admin,u1,"system:masters"\n')

    @property
    def kubeconfig(self) -> Path:
        """Of the administrator."""
        return self._folder / "kubeconfig"

    def start(
        self,
        encryption: Path | None,
        *more_flags: str,
        ready: bool = True,
        seconds: float = START_TIMEOUT,
    ) -> None:
        """Start with this EncryptionConfiguration, or none.

        Args:
            encryption: The file.
            more_flags: For kube-apiserver.
            ready: Wait until it says that it is ready, not only until it answers.
            seconds: How long to wait.
        """
        self._encryption = encryption
        self._more_flags = more_flags
        [self._child] = started(lambda: self._try_start(ready, seconds))
        self._kept_port = self._port
        self._write_kubeconfig()

    def restart(
        self,
        encryption: Path | None = None,
        *,
        ready: bool = True,
        seconds: float = START_TIMEOUT,
    ) -> None:
        """Stop it and start it again, by default with what it had; see `start`."""
        self.stop()
        file = encryption or self._encryption
        self.start(file, *self._more_flags, ready=ready, seconds=seconds)

    def launch(self) -> None:
        """Start it once more with what it had, at the same port; wait for nothing."""
        self._child = self._spawn()

    @property
    def ended(self) -> bool:
        """Return True if it was started and has ended by itself."""
        return self._child is not None and not self._child.running

    @property
    def log(self) -> Path:
        """Return the file that it logs to."""
        return self._folder / "kube-apiserver.log"

    def log_size(self) -> int:
        """Return the size of its log: where `logged` begins that is called later."""
        return self.log.stat().st_size

    def logged(self, begin: int = 0) -> str:
        """Return what it has logged from a byte of its log on."""
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._child:
            self._child.stop()
            self._child = None

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._child:
            self._child.kill()
            self._child = None

    def uid(self) -> int:
        """Return the user that it runs as."""
        return Path(f"/proc/{self.pid}").stat().st_uid

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self._child, "it does not run"
        return self._child.pid

    def _try_start(self, ready: bool, seconds: float) -> list[Child]:
        self._port = self._kept_port or free_ports(1)[0]
        self._kept_port = 0  # another process may have taken it: not a second time
        child = self._spawn()
        ready_paths = ("/readyz", "/api/v1/namespaces/default")
        paths = ready_paths if ready else ("/version",)

        def answers() -> bool:
            child.check()
            return all(self.get(path)[0] == 200 for path in paths)

        return awaited("kube-apiserver", [child], answers, seconds)

    def _spawn(self) -> Child:
        return Child(
            [*self._user, self._binaries.kube_apiserver, *self.flags(self._encryption)],
            log=self.log,
        )

    def flags(self, encryption: Path | None) -> list[str]:
        """Return the flags of kube-apiserver with this EncryptionConfiguration."""
        key = self._folder / "sa.key"
        flags = [
            f"--etcd-servers={self._etcd.url}",
            f"--cert-dir={self._folder / 'certs'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--advertise-address=10.10.10.10",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--feature-gates=KMSv1=true",
            *self._more_flags,
        ]
        if encryption:
            flags.append(f"--encryption-provider-config={encryption}")
        return flags

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send one request as the administrator, with no retry."""
        (answer,) = self.requests(method, path, [body])
        return answer

    def requests(
        self, method: str, path: str, bodies: Iterable[Any]
    ) -> Iterator[tuple[int, bytes]]:
        """Send one after the other over one connection."""
        certificate = self._folder / "certs" / "apiserver.crt"
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            self._port,
            timeout=REQUEST_TIMEOUT,
            context=ssl.create_default_context(cafile=str(certificate)),
        )
        authorization = {"Authorization": f"Bearer {self._token}"}
        with contextlib.closing(connection):
            for body in bodies:
                headers, sent = authorization, None
                if body is not None:
                    headers = headers | {"Content-Type": "application/json"}
                    sent = json.dumps(body)
                connection.request(method, path, sent, headers)
                response = connection.getresponse()
                yield response.status, response.read()

    def get(self, path: str) -> tuple[int, bytes]:
        """Send one GET."""
        return self.request("GET", path)

    def kubectl(self, *args: str, stdin: bytes = b"") -> bytes:
        """Run kubectl, which must succeed, and return what it prints."""
        done = subprocess.run(
            [
                self._binaries.kubectl,
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self._folder / 'kubectl'}",
                *args,
            ],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=REQUEST_TIMEOUT * 2,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def rewrite_secrets(self) -> None:
        """Store every Secret again: kubectl get -o json | kubectl replace -f -."""
        everything = self.kubectl("get", "secrets", "-A", "-o", "json")
        self.kubectl("replace", "-f", "-", stdin=everything)

    def _write_kubeconfig(self) -> None:
        server = {
            "server": f"https://127.0.0.1:{self._port}",
            "certificate-authority": str(self._folder / "certs" / "apiserver.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": server}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [
                {"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}
            ],
            "current-context": "e2e",
        }
        self.kubeconfig.write_text(json.dumps(config))


def _rsa_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
