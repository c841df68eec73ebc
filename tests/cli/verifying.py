"""Store values made of records of a real server, and run `hsm-kms etcd verify`."""

from __future__ import annotations

import base64
import json
import os

from hsm_kms.etcd.rpc.envelope_pb2 import EncryptedDEKSourceType, EncryptedObject

SEED = EncryptedDEKSourceType.HKDF_SHA256_XNONCE_AES_GCM_SEED
DATA = bytes(100)  # what is encrypted under the seed or DEK, of which nothing is read


def v2(wrapped, key_id, *, data=DATA, name="hsm", source=SEED):
    """Return a value as the API server stores it with KMS v2."""
    envelope = EncryptedObject(
        encryptedData=data,
        keyID=key_id,
        encryptedDEKSource=wrapped,
        encryptedDEKSourceType=source,
    )
    return f"k8s:enc:kms:v2:{name}:".encode() + envelope.SerializeToString()


def v1(wrapped, *, name="hsm-v1", data=DATA):
    """Return a value as the API server stores it with KMS v1."""
    prefix = f"k8s:enc:kms:v1:{name}:".encode()
    return prefix + len(wrapped).to_bytes(2, "big") + wrapped + data


def v2_of(sealed):
    return v2(sealed.ciphertext, sealed.key_id)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def pairs_of(values):
    """Return what `etcdctl get --prefix` prints of each value, as a Secret by name."""
    return [
        {
            "key": base64.b64encode(f"/registry/secrets/ns/{name}".encode()).decode(),
            "value": base64.b64encode(value).decode(),
        }
        for name, value in values.items()
    ]


def dump(plugin, values):
    """Write the output of etcdctl with these values to a file."""
    pairs = pairs_of(values)
    path = plugin.directory / "etcd.json"
    path.write_text(
        json.dumps({"header": {"revision": 7}, "kvs": pairs, "count": len(pairs)})
    )
    return path


def verify(plugin, values, *arguments):
    path = dump(plugin, values)
    return plugin.cli("etcd", "verify", "--from-json", str(path), *arguments)


def verify_json(plugin, values):
    result = verify(plugin, values, "-o", "json")
    return result.returncode, json.loads(result.stdout)


def failures(plugin, values):
    """Return key_id, reason, wrapped keys and objects of each failure."""
    code, shown = verify_json(plugin, values)
    rows = [
        (row["key_id"], row["reason"], row["wrapped_keys"], row["objects"])
        for row in shown["failures"]
    ]
    assert code == (1 if rows else 0)
    return rows


def two_seeds(plugin):
    """Provide three objects under two seeds, made by a running server."""
    first, second = plugin.encrypt(os.urandom(32)), plugin.encrypt(os.urandom(32))
    return {"a": v2_of(first), "b": v2_of(first), "c": v2_of(second)}
