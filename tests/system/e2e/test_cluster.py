"""Secrets through a real kube-apiserver, for KMS v2 and for KMS v1."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import World, Writer, prefix, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

READYZ = {"v2": "/readyz/kms-providers", "v1": "/readyz/kms-provider-0"}
# Seconds before the plugin is started again, which takes one more or several. KMS v1
# asks for each write and waits 20 s: in that time its connection is tried again.
AWAY = {"v2": 30.0, "v1": 0.0}
# After 30 s away the API server's connection tries again within 20 s, and its
# check, once good, is believed for 20 s.
NOTICED = 90.0  # seconds
SOME = 5  # writes
EARLY = "written before encryption was switched on"


@dataclass(frozen=True)
class Encrypted:
    """A world whose API server writes through this KMS API."""

    version: str
    world: World

    def readyz(self) -> tuple[int, str]:
        """Ask for the check of the provider alone."""
        status, body = self.world.api.get(READYZ[self.version])
        return status, body.decode()

    def ready(self) -> bool:
        """Return True if the check of the provider passes."""
        return self.readyz()[0] == 200


def leaks(value: bytes, text: str) -> bool:
    """Return True if a stored value contains the text, plain or in base64."""
    # Base64 of the text inside something longer depends on where it begins.
    shifts = [base64.b64encode(b" " * n + text.encode())[4:-4] for n in range(3)]
    return any(part in value for part in (text.encode(), *shifts))


@pytest.fixture(scope="module", params=["v2", "v1"])
def encrypted(
    request: pytest.FixtureRequest,
    binaries: Binaries,
    new_folder: Callable[[], Path],
) -> Iterator[Encrypted]:
    """A cluster that stored one Secret before encryption was switched on."""
    with running_world(binaries, new_folder()) as world:
        with world.unencrypted(request.param):
            world.create("early", EARLY)
            assert leaks(world.stored("early"), EARLY)
        yield Encrypted(request.param, world)


def test_a_secret_is_ciphertext_in_etcd(encrypted):
    """Etcd holds the prefix, the key_id of Status (v2), and no plaintext."""
    world, text = encrypted.world, "a text that must not be seen"

    world.create("plain", text)
    value = world.stored("plain")

    assert value.startswith(prefix(encrypted.version))
    assert not leaks(value, text)
    assert text == world.read("plain")
    if encrypted.version == "v2":  # v1 has no key_id
        assert world.plugin.status().key_id == parse_v2(value).key_id


def test_a_restarted_api_server_reads_what_it_wrote(encrypted):
    """A restarted API server has the plugin decrypt what it wrote."""
    encrypted.world.create("kept", "text that outlives the API server")

    encrypted.world.api.restart()

    assert encrypted.world.read("kept") == "text that outlives the API server"


def test_a_rewrite_encrypts_what_was_there_before(encrypted):
    """`kubectl get | kubectl replace` leaves no Secret unencrypted."""
    world = encrypted.world

    world.api.rewrite_secrets()
    values = world.etcd.secrets()

    assert "default/early" in values
    assert {True} == {v.startswith(prefix(encrypted.version)) for v in values.values()}
    assert not leaks(values["default/early"], EARLY)
    assert EARLY == world.read("early")


def test_62_a_killed_plugin_costs_no_write(encrypted):
    """A plugin that is killed and restarted fails no write.

    In v1 the write whose Encrypt is under way may fail: the API server does not retry
    it. In v2 the plugin is away for 30 s.
    """
    world = encrypted.world
    wait_for("readyz", encrypted.ready, timeout=NOTICED, every=0.5)

    with Writer(world.api, "during") as writer:
        wait_for("writes", lambda: len(writer.names) > SOME, timeout=NOTICED)
        world.plugin.kill()
        back = time.monotonic() + AWAY[encrypted.version]
        if encrypted.version == "v2":  # which asks between writes only when probed
            wait_for("not ready", lambda: not encrypted.ready(), timeout=NOTICED)
        time.sleep(max(0.0, back - time.monotonic()))
        world.plugin.start()
        wait_for("readyz", encrypted.ready, timeout=NOTICED, every=0.5)
        wanted = len(writer.names) + SOME
        wait_for("writes", lambda: len(writer.names) > wanted, timeout=NOTICED)

    assert len(writer.failures) <= (encrypted.version == "v1"), writer.failures
    values = world.etcd.secrets()
    assert {True} == {
        values[f"default/{name}"].startswith(prefix(encrypted.version))
        for name in writer.names
    }


def test_readyz_says_what_the_plugin_says_while_the_token_is_gone(encrypted):
    """/readyz shows the plugin's error message until the token is available."""
    plugin = encrypted.world.plugin
    plugin.configure(apis={"v1": {"enabled": True, "wrapping": "token"}})
    wait_for("readyz", encrypted.ready, timeout=NOTICED, every=0.5)

    def shown() -> str:
        sentence = plugin.complaint(encrypted.version)
        status, body = encrypted.readyz()
        return sentence if status == 500 and sentence and sentence in body else ""

    with plugin.token.away():
        sentence = wait_for("sentence in readyz", shown, timeout=NOTICED, every=0.5)

    wait_for("readyz", encrypted.ready, timeout=NOTICED, every=0.5)
    assert "token" in sentence
    assert not plugin.complaint(encrypted.version)
