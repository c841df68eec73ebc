"""Keys that change their names while a server runs: no wrap under the wrong key_id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.key_id import make_cka_id
from hsm_kms.wrapping.record import Record
from tests.harness.administrator import Destroy, Generate, Import, Relabel, change
from tests.harness.one_worker import imported
from tests.harness.plugin import code_of
from tests.harness.token_keys import LABEL, MATERIAL, create
from tests.harness.wait import wait_for
from tests.system.faults.observed import ObservedServer
from tests.system.rotation.nodes import AHEAD, announce_key, forward, key_id_of

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin

DEK = b"d" * 32
OTHER = bytes(range(101, 133))
AWAY = f"{LABEL}-away"
REFUSED = "FAILED_PRECONDITION"
REPLACED = "another key has the names of the last current key"
CLIENTS = 16


def admin(plugin):
    """Return what the admin socket serves at /status."""
    return ObservedServer(plugin=plugin, hsm=plugin.hsm, shim=None).admin()


def ref_of(plugin):
    """Return the names of the current key."""
    (key,) = [key for key in admin(plugin)["keys"] if key["state"] == "current"]
    return KeyRef(key["label"], bytes.fromhex(key["cka_id"]))


class Writer:
    """Encrypt with many clients at once; keep every answer that is OK."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self.sealed = []

    def write(self, times: int = 5) -> None:
        """Let each client encrypt so many times."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(CLIENTS * times):
                pool.submit(self.once)

    def once(self) -> str:
        """Encrypt once; return the name of the status code."""
        try:
            self.sealed.append(self._plugin.encrypt(DEK))
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    def until_refused(self) -> None:
        """Encrypt until the server refuses, which it does from then on."""
        wait_for(lambda: self.once() == REFUSED)
        self.write(1)

    def check(self, key_id: str, *others: bytes) -> None:
        """Check that all was written under one key_id, and nothing by other keys."""
        assert self.sealed
        assert {key_id} == {each.key_id for each in self.sealed}
        for each in self.sealed:
            for value in others:
                assert not opens(each, value)

    def check_opens(self) -> None:
        """Check that the server opens everything that it answered OK."""
        for each in self.sealed:
            assert DEK == wait_for(lambda each=each: self._opened(each))

    def _opened(self, sealed):
        """Return the plaintext; None while a worker with other keys is replaced."""
        try:
            return self._plugin.decrypt(sealed.ciphertext, sealed.key_id)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return None


def opens(sealed, value):
    """Return True if the key of this value wrapped the DEK."""
    record = Record.decode(sealed.ciphertext)
    aad = record.header.aad("")
    try:
        return DEK == AESGCM(value).decrypt(record.iv, record.ciphertext, aad)
    except InvalidTag:
        return False


def require_failed(plugin, *names):
    """Check that the state is failed, and that the reason has these names."""
    plugin.wait_healthz(REPLACED)
    status = admin(plugin)
    assert "failed" == status["state"]
    for name in names:
        assert name in status["detail"]
    assert REFUSED == code_of(lambda: plugin.encrypt(DEK))


def ends(plugin):
    """Return why workers have ended."""
    return {event["end"] for event in plugin.events("token worker ended")}


def test_relabel_and_import(make_plugin, hsm):
    """A key that is imported under the names of the current key wraps nothing."""
    # No regular look: the sessions themselves must notice.
    plugin = make_plugin(hsm, token={"workers": 2}, health={"interval": "60s"}).start()
    plugin.wait_healthz("ok")
    wait_for(lambda: admin(plugin)["workers"]["ready"] >= 2)
    key_id, ref, writer = plugin.status().key_id, ref_of(plugin), Writer(plugin)
    writer.once()
    change(hsm, Relabel(ref, AWAY), Import(ref, MATERIAL))
    writer.write()
    writer.until_refused()
    writer.check(key_id, MATERIAL)
    require_failed(plugin, key_id, imported(ref, MATERIAL).fingerprint)
    # A look between the two changes saw no key at all, if there was one.
    wait_for(
        lambda: {"key", "canary"} & ends(plugin) and ends(plugin) <= {"key", "canary"}
    )
    plugin.stop()
    plugin.start()
    require_failed(plugin, key_id, imported(ref, MATERIAL).fingerprint)

    change(hsm, Destroy(ref), Relabel(KeyRef(AWAY, ref.cka_id), LABEL))
    plugin.stop()
    plugin.start().wait_healthz("ok")
    assert key_id == plugin.status().key_id
    writer.check_opens()


def test_names_given_back(make_plugin, hsm):
    """Once the key has its names again, the running server goes on by itself."""
    plugin = make_plugin(hsm).start()
    plugin.wait_healthz("ok")
    key_id, ref, writer = plugin.status().key_id, ref_of(plugin), Writer(plugin)
    writer.once()
    change(hsm, Relabel(ref, AWAY), Import(ref, MATERIAL))
    require_failed(plugin, key_id)
    change(hsm, Destroy(ref), Relabel(KeyRef(AWAY, ref.cka_id), LABEL))
    plugin.wait_healthz("ok")
    writer.once()

    writer.check(key_id, MATERIAL)
    writer.check_opens()


def test_destroy_and_import(make_plugin, empty_hsm):
    """After the current key was destroyed, a key with its names wraps nothing."""
    ref = KeyRef(LABEL, b"kek")
    create(empty_hsm, ref, MATERIAL)
    plugin = make_plugin(empty_hsm, health={"interval": "60s"}).start()
    plugin.wait_healthz("ok")
    key_id, writer = plugin.status().key_id, Writer(plugin)
    assert imported(ref, MATERIAL).fingerprint == key_id
    writer.once()
    change(empty_hsm, Destroy(ref), Import(ref, OTHER))
    writer.write()
    writer.until_refused()
    writer.check(key_id, OTHER)
    assert all(opens(each, MATERIAL) for each in writer.sealed)
    require_failed(plugin, key_id, imported(ref, OTHER).fingerprint)

    change(empty_hsm, Destroy(ref), Import(ref, MATERIAL))
    plugin.wait_healthz("ok")
    writer.check_opens()


def test_planted_key(make_node, hsm):
    """A known key cannot become current by lending its names to a generated one."""
    node = make_node().start().well()
    activation = int(node.clock.now() + AHEAD)
    ref = KeyRef(LABEL, make_cka_id(activation))
    planted = imported(ref, MATERIAL).fingerprint
    change(hsm, Import(ref, MATERIAL))
    assert planted == key_id_of(node, ref.cka_id)
    aside = KeyRef(AWAY, ref.cka_id)
    change(hsm, Relabel(ref, AWAY), Generate(ref))
    wait_for(lambda: key_id_of(node, ref.cka_id) != planted)
    good = announce_key([node], ref.cka_id)
    forward([node], activation, -1)
    wait_for(lambda: node.status().key_id == good)
    node.well()
    writer = Writer(node)
    writer.once()
    second = KeyRef(f"{AWAY}-2", ref.cka_id)
    change(hsm, Relabel(ref, second.label), Relabel(aside, LABEL))
    writer.write()
    writer.until_refused()
    writer.check(good, MATERIAL)
    require_failed(node, good, planted)
    node.stop()
    node.start()
    require_failed(node, good, planted)

    change(hsm, Relabel(ref, AWAY), Relabel(second, LABEL))
    node.wait_healthz("ok")
    writer.check_opens()


@pytest.mark.parametrize("how", ["generate", "import"])
def test_only_the_cka_id_names_it(make_plugin, hsm, how):
    """With `fingerprint: cka_id` another key under the CKA_ID is found out, too."""
    plugin = make_plugin(hsm, keys={"fingerprint": "cka_id"}).start()
    plugin.wait_healthz("ok")
    key_id, ref, writer = plugin.status().key_id, ref_of(plugin), Writer(plugin)
    writer.once()
    kept = plugin.state_dir / "last-key.json"
    wait_for(lambda: '"canary":{' in kept.read_text())
    new = Import(ref, MATERIAL) if how == "import" else Generate(ref)
    change(hsm, Relabel(ref, AWAY), new)
    require_failed(plugin, key_id)
    plugin.stop()
    plugin.start()
    require_failed(plugin, key_id)
    writer.check(key_id, MATERIAL)

    change(hsm, Destroy(ref), Relabel(KeyRef(AWAY, ref.cka_id), LABEL))
    plugin.wait_healthz("ok")
    writer.check_opens()
