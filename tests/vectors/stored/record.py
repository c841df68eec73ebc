"""Record what this version stores, in a new folder.

Usage: python -m tests.vectors.stored.record. A real server on a new SoftHSM2 token
wraps the data keys; the data are encrypted as kube-apiserver does it. A folder that
exists is never written again.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from hsm_kms import __version__
from tests.cli.decrypting import by_gcm, by_seed, secret
from tests.cli.verifying import v1, v2
from tests.harness.etcd_samples import by_cbc
from tests.harness.plugin import Plugin
from tests.harness.softhsm import PIN, SoftHsm

HERE = Path(__file__).parent
SCOPE = "prod-eu"
PREFIX = "/registry/secrets/ns/"
DEK = 0  # the type of the source in which Kubernetes 1.27 stored data keys
MECHANISMS = {"gcm": "aes-gcm", "cbc": "aes-cbc-hmac-sha256"}


class Recorder:
    """Servers on one token, one after the other.

    Args:
        directory: An empty folder.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.hsm = SoftHsm(directory / "hsm")
        self.hsm.init_token()
        self._pin = directory / "pin"
        self._pin.touch(mode=0o600)
        self._pin.write_text(f"{PIN}\n")
        self.values: dict[str, dict[str, str]] = {}
        self._number = 0

    def plugin(self, wrapping: str = "token", **keys: object) -> Plugin:
        """Return a server that is not started."""
        self._number += 1
        folder = self._directory / str(self._number)
        folder.mkdir(mode=0o700)
        apis = {name: {"enabled": True, "wrapping": wrapping} for name in ("v1", "v2")}
        return Plugin(
            folder, self.hsm, self._pin, scope=SCOPE, apis=apis, keys=dict(keys)
        )

    def generate(self, kind: str) -> dict[str, str]:
        """Make a key for a mechanism, and return its row of `keys list`."""
        node = self.plugin(mechanism=MECHANISMS[kind])
        known = {each["key_id"] for each in listed(node)}
        made = node.cli("keys", "generate", *(["--another"] if known else []))
        assert 0 == made.returncode, made.stderr
        (new,) = [each for each in listed(node) if each["key_id"] not in known]
        return new

    def store(self, name: str, **keys: object) -> None:
        """Store values in every form, wrapped by the token and by a local KEK."""
        for wrapping in ("token", "software"):
            with serving(self.plugin(wrapping, **keys)) as server:
                for form, value, text in stored(server, f"{name}-{wrapping}"):
                    key = f"{PREFIX}{name}-{wrapping}-{form}"
                    self.values[key] = {
                        "value": encoded(value),
                        "object": encoded(text),
                    }


def listed(node: Plugin) -> list[dict[str, str]]:
    """Return what `keys list` shows."""
    return list(json.loads(node.cli("keys", "list", "-o", "json").stdout))


@contextmanager
def serving(server: Plugin):
    """Run a server while it is needed."""
    try:
        server.start().wait_healthz("ok")
        yield server
    finally:
        server.close()


def stored(server: Plugin, name: str):
    """Yield the form, the value and the object in it, for each form there is."""
    text = secret(password=name.encode())
    where = f"{PREFIX}{name}"
    seed, dek = os.urandom(32), os.urandom(32)
    sealed = server.encrypt(seed)
    data = by_seed(seed, text, f"{where}-v2")
    yield "v2", v2(sealed.ciphertext, sealed.key_id, data=data), text
    sealed = server.encrypt(dek)
    data = by_gcm(dek, text, f"{where}-v2-of-1.27")
    value = v2(sealed.ciphertext, sealed.key_id, data=data, source=DEK)
    yield "v2-of-1.27", value, text
    data = by_gcm(dek, text, f"{where}-v1")
    yield "v1", v1(server.v1_encrypt(dek), data=data), text
    data = by_cbc(dek, text)
    yield "v1-of-1.24", v1(server.v1_encrypt(dek), data=data), text


def encoded(data: bytes) -> str:
    """Return bytes as the JSON has them."""
    return base64.b64encode(data).decode()


def record(folder: Path) -> None:
    """Write the folder of this version."""
    with tempfile.TemporaryDirectory(prefix="hsm-kms-") as scratch:
        recorder = Recorder(Path(scratch))
        pair, gcm = recorder.generate("cbc"), recorder.generate("gcm")
        recorder.store("gcm", current=gcm["key_id"])
        recorder.store("suffix", current=gcm["key_id"], suffix="2026a")
        cbc = {"current": pair["key_id"], "mechanism": MECHANISMS["cbc"]}
        recorder.store("cbc", **cbc)
        recorder.store("cbc-suffix", **cbc, suffix="2026b")
        # Under a name that the key does not have any more when this is read.
        named = recorder.plugin(fingerprint="cka_id")
        (was,) = [e for e in listed(named) if e["cka_id"] == gcm["cka_id"]]
        recorder.store("renamed", fingerprint="cka_id", current=was["key_id"])
        known = {was["key_id"]: gcm["cka_id"]}
        folder.mkdir()
        shutil.copytree(recorder.hsm.tokens, folder / "tokens")
        for path in folder.rglob("*.lock"):
            path.unlink()
    content = {
        "version": __version__,
        "pin": PIN,
        "scope": SCOPE,
        "also_known_as": known,
        "keys": [gcm["key_id"], pair["key_id"]],
        "values": recorder.values,
    }
    (folder / "values.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    target = HERE / __version__
    if target.exists():
        sys.exit(f"{target} exists, and what is recorded is never changed")
    record(target)
