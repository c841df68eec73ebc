"""Upgrade and downgrade of one node, with wheels of two versions.

There is one release so far. The newer version is the same source under another number
and with one setting more, so this proves the procedure of the page; that later versions
read what earlier ones wrote is proven by tests/vectors.
"""

from __future__ import annotations

import json
import os

import pytest

from hsm_kms import __version__
from tests.harness.pages import walk
from tests.harness.terminals import Shell
from tests.harness.wait import wait_for
from tests.harness.wheels import NEXT, build


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Provide the wheels, unpacked."""
    return build(tmp_path_factory.mktemp("wheels"))


class Node:
    """A node whose hsm-kms is replaced, while configuration and state stay.

    Args:
        plugin: Configuration and token.
        monkeypatch: For the environment of servers.
    """

    def __init__(self, plugin, monkeypatch):
        self.plugin = plugin
        self.written = []
        self._monkeypatch = monkeypatch
        # These are not the files whose coverage is measured.
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
            monkeypatch.delenv(name)
        self.shell = Shell(plugin.directory, plugin.config_file, [], {})
        self.names = {
            "/etc/hsm-kms/config.yaml": str(plugin.config_file),
            "0.1.0": __version__,
        }

    def install(self, version):
        """Replace the installed version; a server that runs is not affected."""
        self._monkeypatch.setenv("PYTHONPATH", str(version))
        self.shell.env["PYTHONPATH"] = str(version)

    def serve(self, number):
        """Replace the server by one of the installed version, which says so."""
        self.plugin.stop()
        self.plugin.start(spawn=True).wait_healthz("ok")
        assert number == json.loads(self.plugin.page("/status")[1])["version"]

    def write(self):
        """Have the server wrap a DEK with the token, and one with a local KEK."""
        dek = os.urandom(32)
        sealed = self.plugin.encrypt(dek)
        self.written.append((dek, sealed, self.plugin.v1_encrypt(dek)))

    def read(self):
        """Have the server decrypt all that any version wrote."""
        for dek, sealed, v1 in self.written:
            found = self.plugin.decrypt(sealed.ciphertext, sealed.key_id)
            assert dek == found
            assert dek == self.plugin.v1_decrypt(v1)


@pytest.fixture
def node(make_plugin, hsm, monkeypatch):
    """Provide a node that wraps by the token and by local KEKs."""
    v1 = {"enabled": True, "wrapping": "software"}
    return Node(make_plugin(hsm, apis={"v1": v1}), monkeypatch)


def test_upgrade_and_downgrade(node, versions):
    """Each version reads what the other wrote, and goes on with the same key.

    The newer one adds a setting; before the older one can serve again, the setting must
    be removed, which the newer one applies while it serves.
    """
    plugin = node.plugin
    node.install(versions.older)
    node.serve(__version__)
    key_id = plugin.status().key_id
    node.write()

    node.install(versions.newer)
    node.names["0.1.0"] = NEXT
    with walk(
        node.shell,
        "docs/disaster-recovery.md",
        "Upgrade and downgrade",
        names=node.names,
    ) as page:
        page.run("hsm-kms --version")
        page.run("hsm-kms check --offline")
    node.serve(NEXT)
    node.read()
    node.write()
    assert key_id == plugin.status().key_id
    plugin.merge("log", {"new_setting": True})
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration applied"))

    node.install(versions.older)
    with walk(
        node.shell,
        "docs/disaster-recovery.md",
        "Upgrade and downgrade (2)",
        names=node.names,
    ) as page:
        page.run("hsm-kms check --offline", code=2)
    node.read()  # the newer one still serves
    del plugin.config["log"]["new_setting"]
    plugin.write_config()
    wait_for(lambda: len(plugin.events("configuration applied")) > 1)
    node.serve(__version__)
    node.read()
    node.write()
    node.read()
    assert key_id == plugin.status().key_id


def test_configuration_that_is_not_rolled_back(node, versions):
    """An older server ends with 2, and names the place of the unknown setting."""
    node.install(versions.older)
    node.plugin.merge("log", {"new_setting": True})
    node.plugin.write_config()
    node.plugin.start(spawn=True)

    assert 2 == node.plugin.wait()
    assert "log: unknown key (line " in node.plugin.log()
