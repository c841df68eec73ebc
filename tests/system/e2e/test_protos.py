"""Our protocol files against those the API server is compiled with."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from hsm_kms.api.rpc import kms_v1beta1_pb2, kms_v2_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60, func_only=True)]


@pytest.fixture(scope="module")
def upstream(loader: Path) -> Any:
    """Both protocols as k8s.io/kms has them."""
    return json.loads(subprocess.check_output([loader, "descriptors"]))


def canonical(file: FileDescriptorProto) -> dict[str, Any]:
    """Return what of a file is on the wire, in the loader's form."""
    return {
        "syntax": file.syntax,
        "services": {
            service.name: {
                method.name: {
                    "input": method.input_type,
                    "output": method.output_type,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.method
            }
            for service in file.service
        },
        "messages": dict(messages(file.message_type)),
    }


def messages(
    found: Iterable[DescriptorProto], outer: str = ""
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield each message by its name, nested ones too."""
    for message in found:
        name = outer + message.name
        yield name, {field.name: shape(field) for field in message.field}
        yield from messages(message.nested_type, f"{name}.")


def shape(field: FieldDescriptorProto) -> dict[str, Any]:
    """Return what of a field is on the wire."""
    return {
        "number": field.number,
        "type": FieldDescriptorProto.Type.Name(field.type),
        "type_name": field.type_name,
        "label": FieldDescriptorProto.Label.Name(field.label),
        "proto3_optional": field.proto3_optional,
    }


@pytest.mark.parametrize(
    ("package", "module"), [("v2", kms_v2_pb2), ("v1beta1", kms_v1beta1_pb2)]
)
def test_the_protocol_is_upstreams(package, module, upstream):
    """Our protocol files and upstream's are the same on the wire."""
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)

    assert package == file.package
    assert upstream[package] == canonical(file)
