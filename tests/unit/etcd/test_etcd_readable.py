"""Test how decrypted objects are shown: exact, and safe for a terminal."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.readable import as_json
from hsm_kms.etcd.rpc.object_pb2 import ObjectMeta, Secret, TypeMeta, Unknown

SAFE = re.compile(r"[ -~\n]*")


def stored(message, *, version="v1", kind="Secret"):
    """Return an object as the API server encodes it."""
    outer = Unknown(
        typeMeta=TypeMeta(apiVersion=version, kind=kind),
        raw=message.SerializeToString(),
    )
    return b"k8s\0" + outer.SerializeToString()


@given(st.dictionaries(st.text(max_size=9), st.binary(max_size=99)), st.text())
def test_secret(data, text):
    """A Secret becomes its manifest; each value is exact, and nothing is unsafe."""
    metadata = ObjectMeta(name="db", namespace="default", annotations={"note": text})
    shown = as_json(stored(Secret(metadata=metadata, data=data, type="Opaque")))

    assert SAFE.fullmatch(shown)
    manifest = json.loads(shown)
    assert data == {n: base64.b64decode(v) for n, v in manifest.pop("data").items()}
    assert {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "db",
            "namespace": "default",
            "annotations": {"note": text},
        },
        "type": "Opaque",
    } == manifest


@pytest.mark.parametrize("immutable", [True, False])
def test_secret_with_labels(immutable):
    """Labels and `immutable` are in the manifest where the Secret has them."""
    secret = Secret(metadata=ObjectMeta(labels={"a": "b"}), immutable=immutable)
    manifest = json.loads(as_json(stored(secret)))

    assert {"a": "b"} == manifest["metadata"]["labels"]
    assert immutable is manifest["immutable"]


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_json(value):
    """An object that is stored as JSON is shown as JSON in printable ASCII."""
    shown = as_json(json.dumps(value, ensure_ascii=False).encode())

    assert SAFE.fullmatch(shown)
    assert value == json.loads(shown)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (stored(Secret(), kind="ConfigMap"), "a ConfigMap of v1 in protobuf"),
        (stored(Secret(), version="x/v1"), "a Secret of x/v1 in protobuf"),
        (stored(Secret(), kind="\x1b[2J"), r"a \x1b[2J of v1 in protobuf"),
        (b"k8s\0\xff", "malformed protobuf"),
        (b"\x1b[2J", "neither protobuf nor JSON"),
        (b"[" * 100_000, "neither protobuf nor JSON"),
        (b"1" * 10_000, "neither protobuf nor JSON"),
        (b"", "neither protobuf nor JSON"),
    ],
)
def test_not_shown(data, why):
    """Any other object is named, and goes to a file only."""
    with pytest.raises(HsmKmsError) as refused:
        as_json(data)

    assert f"the object is {why}, which this command does not print" == str(
        refused.value
    )
    assert "--output-file" in refused.value.hint
