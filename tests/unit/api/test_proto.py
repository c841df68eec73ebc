"""The .proto files, the generated code, and the versions that it requires."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from packaging.requirements import Requirement
from packaging.version import Version

from hsm_kms.api import v1, v2
from hsm_kms.api.rpc import kms_v1beta1_pb2, kms_v2_pb2
from hsm_kms.etcd.rpc import kv_pb2, rpc_pb2

ROOT = Path(__file__).parents[3]
RPC = Path("hsm_kms/api/rpc")
ETCD_RPC = Path("hsm_kms/etcd/rpc")

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
    """Return the type of a field in the spelling of the tables above."""
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
    """Names, numbers and types equal upstream's (conformance 1 and 2)."""
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


def numbers(message) -> dict[str, tuple[int, int]]:
    """Return number and type of each field."""
    return {f.name: (f.number, f.type) for f in message.DESCRIPTOR.fields}


def test_etcds_wire():
    """The etcd messages equal upstream's, and none of them can write."""
    (kv, auth) = rpc_pb2.DESCRIPTOR.services_by_name.values()
    text, data, whole = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_INT64
    inner = Field.TYPE_MESSAGE

    assert ["/etcdserverpb.KV/Range", "/etcdserverpb.Auth/Authenticate"] == [
        f"/{service.full_name}/{method.name}"
        for service in (kv, auth)
        for method in service.methods
    ]
    assert {"key": (1, data), "value": (5, data)} == numbers(kv_pb2.KeyValue)
    assert {
        "key": (1, data),
        "range_end": (2, data),
        "limit": (3, whole),
        "revision": (4, whole),
    } == numbers(rpc_pb2.RangeRequest)
    assert {
        "header": (1, inner),
        "kvs": (2, inner),
        "more": (3, Field.TYPE_BOOL),
        "count": (4, whole),
    } == numbers(rpc_pb2.RangeResponse)
    assert {"cluster_id": (1, Field.TYPE_UINT64), "revision": (3, whole)} == numbers(
        rpc_pb2.ResponseHeader
    )
    assert {"name": (1, text), "password": (2, text)} == numbers(
        rpc_pb2.AuthenticateRequest
    )
    assert {"header": (1, inner), "token": (2, text)} == numbers(
        rpc_pb2.AuthenticateResponse
    )


@pytest.mark.parametrize(
    ("module", "name", "service"),
    [
        (kms_v2_pb2, v2.SERVICE, v2.KmsV2(None, None, "v2")),
        (kms_v1beta1_pb2, v1.SERVICE, v1.KmsV1(None)),
    ],
    ids=["v2", "v1beta1"],
)
def test_every_method_is_served(module, name, service):
    """Each service has the name and all methods of its .proto file."""
    (described,) = module.DESCRIPTOR.services_by_name.values()

    assert described.full_name == name
    assert set(described.methods_by_name) == set(service.handlers())


def generated(root: Path) -> list[Path]:
    """Return the generated files below a folder."""
    found = (p for rpc in (RPC, ETCD_RPC) for p in (root / rpc).glob("*_pb2*.py*"))
    return [path.relative_to(root) for path in found]


def test_committed_code_is_what_the_generator_makes(tmp_path):
    """The generated code equals what the .proto files generate now."""
    subprocess.run(
        [ROOT / "proto/generate.sh", tmp_path],
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    made = {p: (tmp_path / p).read_text() for p in generated(tmp_path)}
    committed = {p: (ROOT / p).read_text() for p in generated(ROOT)}

    assert sorted(committed) == sorted(made)
    assert committed == made


def test_all_stubs_in_one_process():
    """Both APIs and etcd's load in one process without a warning (conformance 2)."""
    code = (
        "from hsm_kms.api.rpc import kms_v1beta1_pb2_grpc, kms_v2_pb2_grpc;"
        "from hsm_kms.etcd.rpc import envelope_pb2, rpc_pb2_grpc;"
        "print(kms_v1beta1_pb2_grpc.KeyManagementServiceStub.__module__,"
        " kms_v2_pb2_grpc.KeyManagementServiceStub.__module__,"
        " rpc_pb2_grpc.KVStub.__module__, envelope_pb2.EncryptedObject.__module__)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout

    assert [
        "hsm_kms.api.rpc.kms_v1beta1_pb2_grpc",
        "hsm_kms.api.rpc.kms_v2_pb2_grpc",
        "hsm_kms.etcd.rpc.rpc_pb2_grpc",
        "hsm_kms.etcd.rpc.envelope_pb2",
    ] == out.split()


@pytest.mark.parametrize(
    "stubs", [p for p in generated(ROOT) if p.stem.endswith("_grpc")], ids=str
)
def test_grpcio_floor(stubs):
    """pyproject.toml requires the grpcio version that the stubs require."""
    text = (ROOT / stubs).read_text()
    (wanted,) = re.findall(r"^GRPC_GENERATED_VERSION = '(.+)'$", text, re.MULTILINE)

    assert Version(wanted) == floor("grpcio")


@pytest.mark.parametrize(
    "messages", [p for p in generated(ROOT) if p.name.endswith("_pb2.py")], ids=str
)
def test_protobuf_floor(messages):
    """pyproject.toml requires the protobuf version that the messages require."""
    text = (ROOT / messages).read_text()
    (wanted,) = re.findall(r"^# Protobuf Python Version: (.+)$", text, re.MULTILINE)
    checked = re.findall(r"^    (\d+),$", text, re.MULTILINE)

    assert wanted == ".".join(checked)
    assert Version(wanted) == floor("protobuf")
