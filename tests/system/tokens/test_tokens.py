"""One suite that every brand of token passes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hsm_kms.wrapping.record import Algorithm, Record
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.conformance.clients import unharmed, workers_of
from tests.system.tokens.brands import Nss, SoftHsm

ALGORITHMS = {
    "aes-gcm": Algorithm.AES_256_GCM,
    "aes-cbc-hmac-sha256": Algorithm.AES_256_CBC_HMAC_SHA256,
}
ANOTHER = ("keys", "generate", "--another", "-o", "json")
BIRTH = ("CKA_LOCAL", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE")
CLIENTS = 16
SECONDS = 3.0
RPC_SECONDS = 30.0  # a server without a free session answers after 10 s


def test_find(served):
    """The key, with its HMAC key if it has one, is found and announced by Status."""
    assert 1 == len({key["cka_id"] for key in served.listed()})
    assert served.current()["key_id"] == served.status().key_id


def test_check(served):
    """`check` passes beside a running server."""
    done = served.cli("check")

    assert (0, "") == (done.returncode, done.stderr), done.stdout


def test_generated_key(served, brand):
    """A generated key complies with the policy; only NSS lacks CKA_LOCAL."""
    key = served.current()

    assert [] == key["policy_violations"]
    assert (brand is not Nss) == key["generated_on_token"]


def test_attributes(served, brand, keyed):
    """Every token returns all attributes of the policy; only NSS lacks CKA_LOCAL."""
    (told,) = keyed.attributes()
    yes = {"CKA_SENSITIVE", "CKA_ENCRYPT", "CKA_DECRYPT", "CKA_TOKEN", "CKA_PRIVATE"}

    assert 32 == told["CKA_VALUE_LEN"]
    assert False is told["CKA_EXTRACTABLE"]
    assert yes <= {name for name, value in told.items() if value is True}
    assert [brand is not Nss, True, True] == [told[name] for name in BIRTH]


def test_no_key_then_generate(make_token, serve, brand):
    """On a token without a key `keys generate` makes one, and a server uses it."""
    plugin = serve(make_token(brand))
    empty = plugin.listed()
    key_id = plugin.generate()
    plugin.start().wait_healthz("ok")

    assert [] == empty
    assert key_id == plugin.current()["key_id"]
    assert key_id == plugin.encrypt(b"d" * 32).key_id


def test_second_key(make_token, serve, brand):
    """A second key decrypts, on NSS once keys.foreign says that such keys may.

    NSS reports no key as generated on it, so each looks like an imported one.
    """
    plugin = serve(make_token(brand))
    first = plugin.generate()
    plugin.start().wait_healthz("ok")
    plugin.stop()
    second = json.loads(plugin.cli(*ANOTHER).stdout)["key_id"]
    states = {key["key_id"]: key["state"] for key in plugin.listed()}
    plugin.config["keys"] |= {"foreign": "decrypt"}
    plugin.write_config()
    trusted = {key["key_id"]: key["state"] for key in plugin.listed()}

    foreign, other = ("foreign", "decrypt-only") if brand is Nss else ("pending",) * 2
    assert {first: "current", second: foreign} == states
    assert {first: "current", second: other} == trusted


@pytest.mark.parametrize("size", [1, 15, 16, 17, 32, 1023, 1024])
def test_round_trip(served, brand, size):
    """Decrypt returns the plaintext, by the mechanism that the token supports."""
    plaintext = os.urandom(size)
    sealed = served.encrypt(plaintext)
    record = Record.decode(sealed.ciphertext)

    assert ALGORITHMS[brand.mechanism] == record.header.algorithm
    assert plaintext == served.decrypt(sealed.ciphertext, sealed.key_id)


def test_v1(served):
    """v1 wraps and unwraps too."""
    assert b"ping" == served.v1_decrypt(served.v1_encrypt(b"ping"))


def test_fresh_iv(served):
    """No IV and no ciphertext repeats when a plaintext is wrapped again."""
    records = [Record.decode(served.encrypt(b"d" * 32).ciphertext) for _ in range(50)]

    assert 50 == len({record.iv for record in records})
    assert 50 == len({record.ciphertext for record in records})


def test_tampered(served):
    """A record with a flipped bit or of another length is refused; nothing restarts."""
    sealed = served.encrypt(b"d" * 32)
    with unharmed(served):
        codes = {
            code_of(lambda bad=bad: served.decrypt(bad, sealed.key_id))
            for bad in _damaged(sealed.ciphertext)
        }

        assert {"INVALID_ARGUMENT"} == codes
        assert b"d" * 32 == served.decrypt(sealed.ciphertext, sealed.key_id)


def _damaged(record):
    """One bit of each byte flipped, a different one from byte to byte; and cuts."""
    for at in range(len(record)):
        changed = bytearray(record)
        changed[at] ^= 1 << at % 8
        yield bytes(changed)
    for length in (0, 1, len(record) // 2, len(record) - 16, len(record) - 1):
        yield record[:length]
    yield record + b"\0"


def test_swapped_parts(served):
    """A record with the IV of another is refused."""
    first, second = (
        Record.decode(served.encrypt(b"d" * 32).ciphertext) for _ in range(2)
    )
    mixed = Record(header=first.header, iv=first.iv, ciphertext=second.ciphertext)

    assert "INVALID_ARGUMENT" == code_of(
        lambda: served.decrypt(mixed.encode(), first.header.key_id)
    )


def test_threads(served):
    """16 clients at once for three seconds get correct answers only."""
    until = time.monotonic() + SECONDS
    with ThreadPoolExecutor(CLIENTS) as clients:
        rounds = list(
            clients.map(lambda _: _round_trips(served, until), range(CLIENTS))
        )

    assert all(done > 0 for done in rounds), rounds
    served.wait_healthz("ok")


def _round_trips(plugin, until):
    done = 0
    while not done or time.monotonic() < until:
        plaintext = os.urandom(32)
        sealed = plugin.encrypt(plaintext)
        assert plaintext == plugin.decrypt(sealed.ciphertext, sealed.key_id)
        done += 1
    return done


def test_recover(keyed, serve):
    """After all workers were killed under load the server recovers by itself."""
    plugin = serve(keyed).start()
    plugin.wait_healthz("ok")
    old = plugin.encrypt(b"before")
    before = workers_of(plugin)
    stop = threading.Event()
    with ThreadPoolExecutor(4) as clients:
        loads = [clients.submit(_load, plugin, stop) for _ in range(4)]
        for pid in before:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        # Status still says "ok" for a while when no worker serves.
        wait_for(lambda: workers_of(plugin).isdisjoint(before))
        plugin.wait_healthz("ok")
        stop.set()
    codes = set().union(*(load.result() for load in loads))

    assert codes <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert b"before" == plugin.decrypt(old.ciphertext, old.key_id)
    assert "OK" == code_of(lambda: plugin.encrypt(b"after"))
    assert plugin.process.poll() is None


def _load(plugin, stop):
    """Return the codes of round trips until `stop` is set."""
    codes = set()
    while not stop.is_set():
        plaintext = os.urandom(32)

        def once(plaintext=plaintext):
            sealed = plugin.encrypt(plaintext, RPC_SECONDS)
            opened = plugin.decrypt(sealed.ciphertext, sealed.key_id, RPC_SECONDS)
            assert plaintext == opened

        codes.add(code_of(once))
    return codes


def test_imported_key(make_token, serve, brand):
    """The same key has one key_id here and in SoftHSM, and each reads the other."""
    kek, mac = os.urandom(32), _mac(brand)
    here, there = make_token(brand), make_token(SoftHsm)
    for token in (here, there):
        token.import_kek(kek, mac, b"imported")
    keys = {"mechanism": brand.mechanism, "policy": brand.imported_policy}
    mine, other = (serve(token, keys=keys).start() for token in (here, there))
    mine.wait_healthz("ok")
    other.wait_healthz("ok")
    sealed, foreign = mine.encrypt(b"d" * 32), other.encrypt(b"e" * 32)

    assert sealed.key_id == foreign.key_id
    assert b"d" * 32 == other.decrypt(sealed.ciphertext, sealed.key_id)
    assert b"e" * 32 == mine.decrypt(foreign.ciphertext, foreign.key_id)
    assert not mine.current()["generated_on_token"]


def _mac(brand):
    return None if brand.mechanism == "aes-gcm" else os.urandom(32)


def test_bench(served, brand):
    """`bench` measures the token with keys that it never stores, and leaves none."""
    before = served.listed()
    done = served.cli("bench", "--yes", "--time", "1s", "--rate", "50", "-o", "json")
    report = json.loads(done.stdout)

    assert 0 == done.returncode, done.stdout
    assert "a temporary key in each session" == report["key"]
    assert report["mechanism"].startswith(brand.mechanism)
    assert before == served.listed()
