"""Test `hsm-kms etcd verify` with local KEKs, a failing token, and limits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from fcntl import ioctl
from termios import FIONREAD

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.cli.one_worker import one_worker
from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.config import load as configuration
from hsm_kms.etcd.refusals import NO_KEY
from hsm_kms.etcd.source import Item
from hsm_kms.etcd.verify import MAX_FAILURES, NOT_LISTED, Verification
from hsm_kms.ipc.messages import Encrypt
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record
from tests.cli.verifying import failures, flipped, pairs_of, v1, v2, v2_of
from tests.harness.command_line import HSM_KMS
from tests.harness.processes import children_of
from tests.harness.wait import patient, wait_for

KEY_ID = "a" * 26


def test_token_fails_half_way(shared_server, make_plugin, hsm):
    """If the token fails half-way, the error says how far the run came."""
    deks = [os.urandom(32) for _ in range(20)]
    values = {f"s{n}": v2_of(shared_server.encrypt(dek)) for n, dek in enumerate(deks)}
    node = make_plugin(hsm)
    process = subprocess.Popen(
        [
            *HSM_KMS,
            "etcd",
            "verify",
            *("--from-json", "-", "--config", str(node.config_file)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pairs = [json.dumps(pair) for pair in pairs_of(values)]
    process.stdin.write('{"header": {"revision": 7}, "kvs": [' + ",".join(pairs[:10]))
    process.stdin.flush()
    wait_for(lambda: unread(process.stdin) == 0)  # it is logged in, and reads
    (worker,) = children_of(process.pid)
    os.kill(worker, signal.SIGKILL)

    out, err = process.communicate(
        "," + ",".join(pairs[10:]) + "]}", timeout=patient(60)
    )

    assert "can be decrypted" not in out
    assert "stopped after" in err
    assert 1 == process.returncode


def unread(pipe):
    """Return the number of bytes in a pipe that are not read yet."""
    return int.from_bytes(ioctl(pipe, FIONREAD, bytes(4)), "little")


# Local KEKs


async def sealed_by_local_keks(config_file, count):
    """Return records of DEKs by local KEKs that the token wrapped."""
    config = configuration.load(config_file)
    local_kek = os.urandom(32)
    async with one_worker(config) as worker:
        ring = await read_ring(config, worker)
        key = ring.for_encrypt()
        head = Header(
            kind=Kind.LOCAL_KEK_BY_TOKEN,
            algorithm=Algorithm.AES_256_GCM,
            key_id=key.key_id,
        )
        reply = await worker.ask(
            Encrypt(
                ref=key.ref,
                fingerprint=key.fingerprint,
                mechanism=key.mechanism,
                aad=head.aad(config.scope),
                plaintext=local_kek,
            ),
            5,
        )
    nested = Record(header=head, iv=reply.iv, ciphertext=reply.ciphertext).encode()
    header = Header(
        kind=Kind.DEK_BY_LOCAL_KEK,
        algorithm=Algorithm.AES_256_GCM,
        key_id=key.key_id,
        nested=nested,
    )
    return [by_local_kek(header, local_kek, config.scope) for _ in range(count)]


def by_local_kek(header, local_kek, scope):
    iv = os.urandom(12)
    ciphertext = AESGCM(local_kek).encrypt(iv, os.urandom(32), header.aad(scope))
    return Record(header=header, iv=iv, ciphertext=ciphertext).encode()


def test_local_keks(make_plugin, hsm):
    """A DEK by a local KEK is verified through the nested record."""
    plugin = make_plugin(hsm, scope="prod")
    records = asyncio.run(sealed_by_local_keks(plugin.config_file, 3))
    key_id = Record.decode(records[0]).header.key_id
    at_nested_tag = len(records[0]) - 32 - 16 - 12 - 1 - 1

    assert [] == failures(plugin, {str(n): v1(r) for n, r in enumerate(records)})
    assert [(key_id, "not authentic: of another scope, or damaged", 2, 2)] == failures(
        plugin,
        {
            "outer": v1(flipped(records[0], -1)),
            "nested": v1(flipped(records[1], at_nested_tag)),
            "good": v1(records[2]),
        },
    )


# What no token is needed for


class Refusing:
    """Refuse every record, and count the calls."""

    def __init__(self):
        self.asked = 0

    async def why_not(self, record):
        self.asked += 1
        return NO_KEY


def record_under(key_id, *, iv=bytes(12)):
    header = Header(
        kind=Kind.DEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=key_id
    )
    return Record(header=header, iv=iv, ciphertext=bytes(48)).encode()


@pytest.mark.parametrize("objects", [1, 5000])
async def test_each_wrapped_key_is_opened_once(objects):
    """A wrapped key is decrypted once for any number of objects."""
    opener = Refusing()
    value = v2(record_under(KEY_ID), KEY_ID)
    items = [Item(b"/registry/secrets/ns/%d" % n, value) for n in range(objects)]

    verdict = await Verification(opener).run(items, lambda _: None)

    assert (1, objects, objects) == (
        opener.asked,
        verdict.objects,
        verdict.failed_objects,
    )


async def test_invented_key_ids_fill_no_memory():
    """The number of rows is limited, and further objects are still counted."""
    suffixes = range(MAX_FAILURES + 10)
    key_ids = [f"{KEY_ID}.{n}" for n in suffixes]
    items = [Item(b"/k", v2(record_under(key_id), key_id)) for key_id in key_ids]

    verdict = await Verification(Refusing()).run(items, lambda _: None)

    assert MAX_FAILURES + 1 == len(verdict.failures)
    assert 10 == verdict.failures["", NOT_LISTED].objects
    assert len(key_ids) == verdict.failed_keys == verdict.failed_objects
