"""Store values with an object in them, and run `hsm-kms etcd decrypt`."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from hsm_kms.etcd.rpc.object_pb2 import ObjectMeta, Secret, TypeMeta, Unknown
from tests.cli.verifying import dump, v2
from tests.harness.command_line import Ended

PASSWORD = "hunter2-of-the-test"  # noqa: S105 - what must not be in a log
KEY = "/registry/secrets/ns/a"


def secret(**data):
    """Return a Secret as the API server encodes it."""
    inner = Secret(
        metadata=ObjectMeta(name="a", namespace="ns"), data=data, type="Opaque"
    )
    kind = TypeMeta(apiVersion="v1", kind="Secret")
    outer = Unknown(typeMeta=kind, raw=inner.SerializeToString())
    return b"k8s\0" + outer.SerializeToString()


OBJECT = secret(password=PASSWORD.encode())


def by_gcm(dek, plaintext=OBJECT, key=KEY):
    """Return data as the API server encrypts it with a DEK."""
    nonce = os.urandom(12)
    return nonce + AESGCM(dek).encrypt(nonce, plaintext, key.encode())


def by_seed(seed, plaintext=OBJECT, key=KEY):
    """Return data as the API server encrypts it with a seed."""
    info = os.urandom(32)
    return info + by_gcm(HKDFExpand(SHA256(), 32, info).derive(seed), plaintext, key)


def v2_with(server, plaintext=OBJECT, key=KEY):
    """Return a value of KMS v2 whose seed a server has wrapped."""
    seed = os.urandom(32)
    sealed = server.encrypt(seed)
    return v2(sealed.ciphertext, sealed.key_id, data=by_seed(seed, plaintext, key))


def decrypt(node, value, *arguments, stdin=""):
    """Decrypt the value of the Secret `a` of a file of etcdctl."""
    path = dump(node, {"a": value})
    command = ("etcd", "decrypt", KEY, "--from-json", str(path), *arguments)
    return Ended.of(node.cli(*command, stdin=stdin))
