"""The .proto files, the code generated from them, and the versions it asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from hsm_kms.api import v1, v2
from hsm_kms.api.rpc import kms_v1beta1_pb2, kms_v2_pb2

ROOT = Path(__file__).parent.parent
RPC = Path("hsm_kms/api/rpc")

V2 = {
    "StatusRequest": {},
    "StatusResponse": {
        "version": (1, "string"),
        "healthz": (2, "string"),
        "key_id": (3, "string"),
    },
    "DecryptRequest": {
        "ciphertext": (1, "bytes"),
        "uid": (2, "string"),
        "key_id": (3, "string"),
        "annotations": (4, "map"),
    },
    "DecryptResponse": {"plaintext": (1, "bytes")},
    "EncryptRequest": {"plaintext": (1, "bytes"), "uid": (2, "string")},
    "EncryptResponse": {
        "ciphertext": (1, "bytes"),
        "key_id": (2, "string"),
        "annotations": (3, "map"),
    },
}
V1 = {
    "VersionRequest": {"version": (1, "string")},
    "VersionResponse": {
        "version": (1, "string"),
        "runtime_name": (2, "string"),
        "runtime_version": (3, "string"),
    },
    "DecryptRequest": {"version": (1, "string"), "cipher": (2, "bytes")},
    "DecryptResponse": {"plain": (1, "bytes")},
    "EncryptRequest": {"version": (1, "string"), "plain": (2, "bytes")},
    "EncryptResponse": {"cipher": (1, "bytes")},
}


def floor(name: str) -> Version:
    """Return the lowest version of a dependency that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = [r for r in map(Requirement, project["dependencies"]) if r.name == name]
    (least,) = [s.version for s in found.specifier if s.operator == ">="]
    return Version(least)


def kind(field) -> str:
    """Return the type of a field as the tables above spell it."""
    if field.message_type is not None:
        assert field.message_type.GetOptions().map_entry
        key, value = field.message_type.fields
        assert (field.TYPE_STRING, field.TYPE_BYTES) == (key.type, value.type)
        return "map"
    return {field.TYPE_STRING: "string", field.TYPE_BYTES: "bytes"}[field.type]


@pytest.mark.parametrize(
    ("module", "package", "methods", "messages"),
    [
        (kms_v2_pb2, "v2", ["Status", "Decrypt", "Encrypt"], V2),
        (kms_v1beta1_pb2, "v1beta1", ["Version", "Decrypt", "Encrypt"], V1),
    ],
    ids=["v2", "v1beta1"],
)
def test_wire(module, package, methods, messages):
    """Names, numbers and types are upstream's (conformance 1 and 2)."""
    file = module.DESCRIPTOR
    (service,) = file.services_by_name.values()

    assert package == file.package
    assert f"{package}.KeyManagementService" == service.full_name
    assert methods == [m.name for m in service.methods]
    for method in service.methods:
        assert f"{method.name}Request" == method.input_type.name
        assert f"{method.name}Response" == method.output_type.name
        assert not method.client_streaming
        assert not method.server_streaming
    assert messages == {
        name: {f.name: (f.number, kind(f)) for f in message.fields}
        for name, message in file.message_types_by_name.items()
    }


@pytest.mark.parametrize(
    ("module", "name", "service"),
    [
        (kms_v2_pb2, v2.SERVICE, v2.KmsV2(None, None, "v2")),
        (kms_v1beta1_pb2, v1.SERVICE, v1.KmsV1(None)),
    ],
    ids=["v2", "v1beta1"],
)
def test_every_method_is_served(module, name, service):
    """Our services have the name and all the methods of the .proto file."""
    (described,) = module.DESCRIPTOR.services_by_name.values()

    assert described.full_name == name
    assert set(described.methods_by_name) == set(service.handlers())


def test_committed_code_is_what_the_generator_makes(tmp_path):
    """The generated code in the tree is neither old nor edited."""
    subprocess.run(
        [ROOT / "proto/generate.sh", tmp_path],
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    made = {p.name: p.read_text() for p in (tmp_path / RPC).iterdir()}
    committed = {p.name: p.read_text() for p in (ROOT / RPC).glob("*_pb2*.py*")}

    assert sorted(committed) == sorted(made)
    assert committed == made


def test_both_stubs_in_one_process():
    """Both APIs can be loaded together, warnings being errors (conformance 2)."""
    code = (
        "from hsm_kms.api.rpc import kms_v1beta1_pb2_grpc, kms_v2_pb2_grpc;"
        "print(kms_v1beta1_pb2_grpc.KeyManagementServiceStub.__module__,"
        " kms_v2_pb2_grpc.KeyManagementServiceStub.__module__)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout

    assert (
        "hsm_kms.api.rpc.kms_v1beta1_pb2_grpc hsm_kms.api.rpc.kms_v2_pb2_grpc"
        == out.strip()
    )


@pytest.mark.parametrize("api", ["kms_v1beta1", "kms_v2"])
def test_grpcio_floor(api):
    """The grpcio that pyproject.toml asks for is the one the stubs ask for."""
    text = (ROOT / RPC / f"{api}_pb2_grpc.py").read_text()
    (wanted,) = re.findall(r"^GRPC_GENERATED_VERSION = '(.+)'$", text, re.MULTILINE)

    assert Version(wanted) == floor("grpcio")


@pytest.mark.parametrize("api", ["kms_v1beta1", "kms_v2"])
def test_protobuf_floor(api):
    """The protobuf that pyproject.toml asks for is what the messages ask for."""
    text = (ROOT / RPC / f"{api}_pb2.py").read_text()
    (wanted,) = re.findall(r"^# Protobuf Python Version: (.+)$", text, re.MULTILINE)
    checked = re.findall(r"^    (\d+),$", text, re.MULTILINE)

    assert wanted == ".".join(checked)
    assert Version(wanted) == floor("protobuf")
