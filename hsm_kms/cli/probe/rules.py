"""Say what kube-apiserver refuses in the answers of a KMS plugin.

1. Status (v2): healthz is exactly "ok"; version is "v2" or "v2beta1", and always the
   same; key_id has 1 to 1,024 bytes.
2. Encrypt (v2): ciphertext has 1 to 1,024 bytes; key_id has 1 to 1,024 bytes and is
   that of Status; annotations have 32,768 bytes at most, keys and values together, and
   each key is a domain name of two labels or more.
3. Version (v1): version is "v1beta1".
4. Encrypt (v1): cipher has at most 65,535 bytes. kube-apiserver would store an empty
   one, which nobody could decrypt.
5. Decrypt: what was encrypted comes back.

The source is k8s.io/apiserver: pkg/server/options/encryptionconfig/config.go,
pkg/storage/value/encrypt/envelope/kmsv2/envelope.go, and envelope.go for v1.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Final

from hsm_kms.api.v1 import VERSION as V1_VERSION
from hsm_kms.api.v2 import MAX_ANNOTATION_BYTES, MAX_KEY_ID_BYTES
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hsm_kms.api.rpc.kms_v2_pb2 import EncryptResponse, StatusResponse

V2_VERSIONS: Final = ("v2", "v2beta1")
MAX_CIPHERTEXT_BYTES: Final = 1024
MAX_V1_CIPHER_BYTES: Final = 65535  # its length is stored in two bytes

_MAX_NAME_BYTES: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123
_SHOWN: Final = 256  # characters of a text of the plugin
_OF_PLUGIN: Final = "this is a fault of the plugin: report it to its maker"


def status_faults(reply: StatusResponse, before: str) -> Iterator[HsmKmsError]:
    """Yield what is wrong with a Status of KMS v2.

    Args:
        reply: The answer.
        before: The version in the answer before; "" if this is the first.
    """
    if reply.healthz != "ok":
        yield HsmKmsError(
            f'healthz is "{printable(reply.healthz, _SHOWN)}", and not "ok"',
            hint="fix the cause that it names; with hsm-kms, run `hsm-kms check`",
        )
    if reply.version not in V2_VERSIONS:
        yield HsmKmsError(
            f'version is "{printable(reply.version)}", and neither "v2" nor "v2beta1"',
            hint=_OF_PLUGIN,
        )
    elif before and reply.version != before:
        yield HsmKmsError(
            f'version is "{reply.version}", and was "{printable(before)}" before',
            hint=_OF_PLUGIN,
        )
    yield from _key_id_faults(reply.key_id)


def encrypt_faults(reply: EncryptResponse, key_id: str | None) -> Iterator[HsmKmsError]:
    """Yield what is wrong with the answer to an Encrypt of KMS v2.

    Args:
        reply: The answer.
        key_id: The key_id of Status; None if there is none to compare.
    """
    yield from _size_fault("ciphertext", len(reply.ciphertext), MAX_CIPHERTEXT_BYTES)
    if key_id is not None and reply.key_id != key_id:
        yield HsmKmsError(
            f'key_id is "{printable(reply.key_id)}", and that of Status is '
            f'"{printable(key_id)}"',
            hint=_OF_PLUGIN,
        )
    else:
        yield from _key_id_faults(reply.key_id)
    yield from _annotation_faults(reply.annotations)


def version_faults(version: str) -> Iterator[HsmKmsError]:
    """Yield what is wrong with a Version of KMS v1."""
    if version != V1_VERSION:
        yield HsmKmsError(
            f'version is "{printable(version)}", and not "{V1_VERSION}"',
            hint=_OF_PLUGIN,
        )


def cipher_faults(cipher: bytes) -> Iterator[HsmKmsError]:
    """Yield what is wrong with what an Encrypt of KMS v1 returned."""
    yield from _size_fault("cipher", len(cipher), MAX_V1_CIPHER_BYTES)


def decrypt_faults(plaintext: bytes, wanted: bytes) -> Iterator[HsmKmsError]:
    """Yield what is wrong with what a Decrypt returned.

    Args:
        plaintext: What it returned.
        wanted: What was encrypted.
    """
    if not hmac.compare_digest(plaintext, wanted):
        yield HsmKmsError(
            f"{len(plaintext)} bytes came back that are not the {len(wanted)} bytes "
            "that were encrypted",
            hint="do not use this plugin: objects could not be read again",
        )


def is_domain_name(name: str) -> bool:
    """Return True if kube-apiserver takes this key of an annotation.

    The rule is that of IsFullyQualifiedDomainName in k8s.io/apimachinery: lower-case
    labels of RFC 1123, two or more; one dot may follow the last.
    """
    name = name.removesuffix(".")
    labels = name.split(".")
    return (
        len(labels) > 1
        and len(name) <= _MAX_NAME_BYTES
        and all(_LABEL.fullmatch(label) for label in labels)
    )


def _key_id_faults(key_id: str) -> Iterator[HsmKmsError]:
    yield from _size_fault("key_id", len(key_id.encode()), MAX_KEY_ID_BYTES)


def _size_fault(what: str, size: int, most: int) -> Iterator[HsmKmsError]:
    if not 1 <= size <= most:
        cause = f"{what} has {size:,} bytes, and must have 1 to {most:,}"
        yield HsmKmsError(cause, hint=_OF_PLUGIN)


def _annotation_faults(annotations: Mapping[str, bytes]) -> Iterator[HsmKmsError]:
    for name in annotations:
        if not is_domain_name(name):
            yield HsmKmsError(
                f'the key "{printable(name)}" of an annotation is no domain name of '
                "two lower-case labels or more",
                hint=_OF_PLUGIN,
            )
    size = sum(len(name.encode()) + len(value) for name, value in annotations.items())
    if size > MAX_ANNOTATION_BYTES:
        yield HsmKmsError(
            f"annotations have {size:,} bytes, and may have {MAX_ANNOTATION_BYTES:,}",
            hint=_OF_PLUGIN,
        )
