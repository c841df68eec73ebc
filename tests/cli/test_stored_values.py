"""Everything that any version has stored is decrypted, see tests/vectors/stored."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hsm_kms.etcd.rpc.envelope_pb2 import EncryptedObject
from tests.harness.etcd_samples import etcdctl_json
from tests.harness.plugin import Plugin
from tests.harness.softhsm import SoftHsm

STORED = Path(__file__).parents[1] / "vectors" / "stored"
VERSIONS = sorted(
    path.name for path in STORED.iterdir() if (path / "values.json").exists()
)

# SHA-256 of values.json. A line is added for a new version; none is ever changed.
RECORDED = {
    "0.1.0": "bf264baed0ca4e8ddc5be54551385409130dc02a9db841bc4389e297473e41c7",
}


class Version:
    """A token, and what a version of hsm-kms stored with its keys.

    Args:
        folder: The recorded folder.
        directory: For copies of the token and for the node's files.
    """

    def __init__(self, folder: Path, directory: Path) -> None:
        recorded = json.loads((folder / "values.json").read_text())
        self.values = {
            key: (base64.b64decode(each["value"]), base64.b64decode(each["object"]))
            for key, each in recorded["values"].items()
        }
        hsm = SoftHsm(directory / "hsm")
        shutil.rmtree(hsm.tokens)
        shutil.copytree(folder / "tokens", hsm.tokens)
        pin = directory / "pin"
        pin.touch(mode=0o600)
        pin.write_text(recorded["pin"])
        own = directory / "node"
        own.mkdir(mode=0o700)
        self.node = Plugin(
            own,
            hsm,
            pin,
            scope=recorded["scope"],
            keys={
                "current": recorded["keys"][0],
                "also_known_as": recorded["also_known_as"],
            },
        )
        self.dump = own / "etcd.json"
        self.dump.write_bytes(
            etcdctl_json({key: value for key, (value, _) in self.values.items()})
        )


@pytest.fixture(params=VERSIONS)
def version(request, directory):
    """What a version recorded, with a token of this test's own."""
    made = Version(STORED / request.param, directory)
    yield made
    made.node.close()


def test_nothing_recorded_is_changed():
    """What each version recorded is there, byte for byte."""
    assert {
        name: hashlib.sha256((STORED / name / "values.json").read_bytes()).hexdigest()
        for name in VERSIONS
    } == RECORDED


def test_forms(version):
    """Both APIs, both ciphers, suffixes, renamed keys and local KEKs are recorded."""
    names = {key.rpartition("/")[2] for key in version.values}
    forms = ("v2", "v2-of-1.27", "v1", "v1-of-1.24")
    assert names >= {
        f"{kind}-{wrapping}-{form}"
        for kind in ("gcm", "cbc", "suffix", "cbc-suffix", "renamed")
        for wrapping in ("token", "software")
        for form in forms
    }


def test_decrypted_without_an_api_server(version, directory):
    """`etcd decrypt` gives each object, byte for byte."""
    for number, (key, (_, text)) in enumerate(version.values.items()):
        file = directory / f"object{number}"
        ended = version.node.cli(
            *("etcd", "decrypt", key, "--from-json", str(version.dump)),
            *("--output-file", str(file)),
        )
        assert 0 == ended.returncode, (key, ended.stderr)
        assert text == file.read_bytes(), key


def test_decrypted_by_the_server(version):
    """The server unwraps each record, also those of KMS v1."""
    server = version.node.start()
    server.wait_healthz("ok")
    for key, (value, _) in version.values.items():
        kind, _, rest = value.removeprefix(b"k8s:enc:kms:").partition(b":")
        stored = rest.partition(b":")[2]
        if kind == b"v2":
            found = EncryptedObject.FromString(stored)
            assert 32 == len(server.decrypt(found.encryptedDEKSource, found.keyID)), key
        else:
            length = int.from_bytes(stored[:2], "big")
            assert 32 == len(server.v1_decrypt(stored[2 : 2 + length])), key


def test_verified(version):
    """`etcd verify` decrypts every record with the token."""
    ended = version.node.cli("etcd", "verify", "--from-json", str(version.dump))

    assert 0 == ended.returncode, ended.stdout + ended.stderr
