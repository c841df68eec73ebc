"""Show a decrypted object as JSON that a terminal can print.

kube-apiserver stores objects of its own APIs as protobuf behind a magic number
(k8s.io/apimachinery, pkg/runtime/serializer/protobuf), and custom resources as JSON.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.rpc.object_pb2 import Secret, Unknown
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from hsm_kms.etcd.rpc.object_pb2 import ObjectMeta

PROTOBUF: Final = b"k8s\0"
"""What every object begins with that is stored as protobuf."""

_SECRET: Final = ("v1", "Secret")
_AS_FILE: Final = "give --output-file FILE, which gets the object as it is stored"


def as_json(data: bytes) -> str:
    """Return an object as JSON in printable ASCII: of a Secret, its manifest.

    Args:
        data: The object as the API server encoded it.

    Raises:
        HsmKmsError: The object is neither a Secret nor JSON.
    """
    shown = _manifest(data) if data.startswith(PROTOBUF) else _parsed(data)
    return json.dumps(shown, indent=2)


def _manifest(data: bytes) -> dict[str, Any]:
    try:
        stored = Unknown.FromString(data.removeprefix(PROTOBUF))
        of = stored.typeMeta.apiVersion, stored.typeMeta.kind
        secret = Secret.FromString(stored.raw) if of == _SECRET else None
    except DecodeError:
        raise _not_shown("malformed protobuf") from None
    if secret is None:
        raise _not_shown(f"a {printable(of[1])} of {printable(of[0])} in protobuf")
    return _of_secret(secret)


def _of_secret(secret: Secret) -> dict[str, Any]:
    """Return the manifest of a Secret, with what `kubectl apply` takes of it."""
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(secret.metadata),
        "type": secret.type,
        "data": {
            name: base64.b64encode(value).decode("ascii")
            for name, value in sorted(secret.data.items())
        },
    }
    if secret.HasField("immutable"):
        manifest["immutable"] = secret.immutable
    return manifest


def _metadata(metadata: ObjectMeta) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": metadata.name, "namespace": metadata.namespace}
    for field in ("labels", "annotations"):
        if pairs := getattr(metadata, field):
            shown[field] = dict(sorted(pairs.items()))
    return shown


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _not_shown("neither protobuf nor JSON") from None


def _not_shown(what: str) -> HsmKmsError:
    return HsmKmsError(
        f"the object is {what}, which this command does not print", hint=_AS_FILE
    )
