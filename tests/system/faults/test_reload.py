"""A changed configuration is taken over under load; a bad one changes nothing."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.harness.wait import wait_for
from tests.system.faults.load import Load

NOT_TAKEN = "configuration rejected"
RESTART = f"{NOT_TAKEN}: a restart is needed"


def hang_up(rig):
    """SIGHUP."""
    os.kill(rig.plugin.process.pid, signal.SIGHUP)


def replace(rig, text):
    """Replace the configuration file atomically."""
    new = rig.plugin.config_file.with_suffix(".new")
    new.write_text(text)
    new.rename(rig.plugin.config_file)


def write(rig):
    """Write the configuration as it is in `rig.plugin.config` now."""
    replace(rig, json.dumps(rig.plugin.config))  # JSON is YAML


@pytest.fixture
def two_keys(make_rig):
    """A server on a token with two keys; the first is current."""
    rig = make_rig()
    rig.start()
    rig.well()
    first = rig.plugin.status().key_id
    rig.plugin.stop()
    rig.plugin.config["keys"]["current"] = first
    write(rig)
    assert 0 == rig.plugin.cli("keys", "generate", "--another").returncode
    rig.start()
    rig.well()
    return rig


@pytest.mark.parametrize("tell", [hang_up, lambda _: None], ids=["SIGHUP", "file"])
def test_switch(two_keys, tell):
    """A new keys.current is applied without a failed request."""
    rig = two_keys
    first = rig.plugin.status().key_id
    (second,) = {key["key_id"] for key in rig.admin()["keys"]} - {first}
    old = rig.plugin.encrypt(b"dek")
    with Load(rig.plugin) as load:
        load.wait_well()
        rig.plugin.config["keys"]["current"] = second
        rig.plugin.config["log"]["level"] = "debug"
        write(rig)
        tell(rig)
        wait_for(lambda: rig.plugin.status().key_id == second)
        wait_for(lambda: rig.plugin.encrypt(b"dek").key_id == second)
        load.wait_well()
        rig.workers()

    assert [] == [*load.failures(), *load.wrong]
    assert b"dek" == rig.plugin.decrypt(old.ciphertext, old.key_id)
    assert first == old.key_id
    assert "debug" in {event["level"] for event in rig.plugin.events("request")}
    assert 1 == len(rig.plugin.events("configuration applied"))
    wait_for(lambda: 10 == sum(rig.shim.sessions().values()))


def unreadable(rig):
    replace(rig, "version: 1\nkeys: {label: a, label: b}\n")
    return NOT_TAKEN, {"faults"}


def unknown_key(rig):
    rig.plugin.config["tokn"] = {}
    write(rig)
    return NOT_TAKEN, {"faults"}


def token_lost(rig):
    rig.plugin.config["token"]["token_label"] = "no-such-token"  # noqa: S105 - a PKCS#11 token
    rig.plugin.config["log"]["level"] = "debug"
    write(rig)
    return f"{NOT_TAKEN}: the token would become unavailable", {"error"}


def fixed(*path, value):
    """Return a change of a setting that needs a restart, beside one of log.level."""

    def change(rig):
        *sections, last = path
        section = rig.plugin.config
        for name in sections:
            section = section[name]
        section[last] = value
        rig.plugin.config["log"]["level"] = "debug"
        write(rig)
        return RESTART, {"changed"}

    change.__name__ = ".".join(path)
    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (unreadable, "keys.label"),
        (unknown_key, "unknown key"),
        (token_lost, "no-such-token"),
        (fixed("listen", "socket", value="/run/other.sock"), "listen"),
        (fixed("state_dir", value="/var/lib/other"), "state_dir"),
        (fixed("token", "module", value="/usr/lib/other.so"), "token.module"),
        (fixed("http", "listen", value="127.0.0.1:1"), "http"),
        (fixed("apis", "v2", "version", value="v2beta1"), "apis.v2.version"),
    ],
)
def test_not_taken_over(rig, change, told):
    """A configuration that is faulty or needs a restart is rejected and named."""
    workers = rig.workers()
    with Load(rig.plugin) as load:
        load.wait_well()
        event, fields = change(rig)
        hang_up(rig)
        wait_for(lambda: rig.plugin.events(event))
        load.wait_well()
        rig.plugin.healthz()

    (entry,) = rig.plugin.events(event)
    assert told in " ".join(str(entry[field]) for field in fields)
    assert [] == [*load.failures(), *load.wrong]
    assert set(workers) <= set(rig.worker_pids)
    assert [] == rig.plugin.events("configuration applied")
    answered = rig.plugin.events("request")  # told at debug, when all is well
    assert [] == [entry for entry in answered if entry["code"] == "OK"]
    assert "ok" == rig.plugin.healthz()
