"""A changed configuration is applied under load; a bad one changes nothing."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.harness import command_line
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import wait_for
from tests.system.faults.load import Load

NOT_TAKEN = "configuration rejected"
RESTART = f"{NOT_TAKEN}: a restart is needed"
UNAVAILABLE = f"{NOT_TAKEN}: the token would become unavailable"


def hang_up(rig):
    """SIGHUP."""
    os.kill(rig.plugin.process.pid, signal.SIGHUP)


@pytest.fixture
def two_keys(make_rig):
    """A server on a token with two keys; the first is current."""
    rig = make_rig()
    rig.start()
    rig.well()
    first = rig.plugin.status().key_id
    rig.plugin.stop()
    rig.plugin.config["keys"]["current"] = first
    rig.plugin.write_config()
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
        rig.plugin.write_config()
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
    rig.plugin.write_config("version: 1\nkeys: {label: a, label: b}\n")
    return NOT_TAKEN, {"faults"}


def unknown_key(rig):
    rig.plugin.config["tokn"] = {}
    rig.plugin.write_config()
    return NOT_TAKEN, {"faults"}


def token_lost(rig):
    rig.plugin.config["token"]["token_label"] = "no-such-token"  # noqa: S105 - a PKCS#11 token
    rig.plugin.config["log"]["level"] = "debug"
    rig.plugin.write_config()
    return UNAVAILABLE, {"error"}


def fixed(*path, value):
    """Return a change of a setting that needs a restart, beside one of log.level."""

    def change(rig):
        *sections, last = path
        section = rig.plugin.config
        for name in sections:
            section = section[name]
        section[last] = value
        rig.plugin.config["log"]["level"] = "debug"
        rig.plugin.write_config()
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
def test_not_taken_over(make_rig, change, told):
    """A configuration that is faulty or needs a restart is rejected and named."""
    rig = make_rig(token={"call_timeout": "20s", "session_wait": "20s"})
    rig.start()
    rig.well()
    workers = rig.workers()
    good = rig.plugin.config_file.with_name("good.yaml")
    good.write_text(json.dumps(rig.plugin.config))
    with Load(rig.plugin) as load:
        load.wait_well()
        event, fields = change(rig)
        hang_up(rig)
        wait_for(lambda: rig.plugin.events(event))
        load.wait_well()
        rig.plugin.healthz()

    (entry,) = rig.plugin.events(event)
    config = rig.admin()["config"]
    assert not config["in_force"]
    assert told in config["error"]
    assert 0 == rig.metrics()["hsm_kms_config_in_force"]
    shown = command_line.run("status", "--config", good).stdout
    assert f"config: not in force since {config['since']}: " in shown
    assert is_explained("config: not in force since ")
    assert told in " ".join(str(entry[field]) for field in fields)
    assert [] == [*load.failures(), *load.wrong]
    assert set(workers) <= set(rig.worker_pids)
    assert [] == rig.plugin.events("configuration applied")
    answered = rig.plugin.events("request")  # told at debug, when all is well
    assert [] == [entry for entry in answered if entry["code"] == "OK"]
    assert "ok" == rig.plugin.healthz()
    assert {"ok", "starting"} >= {
        entry["state"]
        for entry in rig.plugin.events("health")
        if entry.get("engine") != "on trial"
    }


def test_taken_back(rig):
    """The file is in force again once it equals the configuration in force."""
    good = rig.plugin.config_file.read_text()
    rig.plugin.write_config("version: 2\n")
    wait_for(lambda: 0 == rig.metrics()["hsm_kms_config_in_force"])
    rig.plugin.write_config(good)
    wait_for(lambda: 1 == rig.metrics()["hsm_kms_config_in_force"])

    assert {"in_force": True, "since": None, "error": None} == rig.admin()["config"]
    assert "\nconfig: in force\n" in rig.plugin.cli("status").stdout


def test_mechanism_of_a_rejected_file(rig):
    """The mechanism that a trial found is not remembered if the file is rejected."""
    plugin, saved = rig.plugin, rig.plugin.state_dir / "mechanism.json"
    before, old = saved.read_bytes(), plugin.status().key_id
    good = plugin.config_file.read_text()
    plugin.config["keys"] |= {"label": "pair", "mechanism": "aes-cbc-hmac-sha256"}
    pair = plugin.config_file.with_name("pair.yaml")
    pair.write_text(json.dumps(plugin.config))
    made = command_line.run("keys", "generate", "--config", pair)
    assert 0 == made.returncode, made.stderr
    pair.rename(plugin.config_file)
    wait_for(lambda: plugin.events(UNAVAILABLE))

    assert [entry for entry in plugin.events("mechanism found") if entry.get("engine")]
    assert before == saved.read_bytes()
    rig.plugin.write_config(good)
    plugin.stop()
    rig.start()
    rig.well()
    assert old == plugin.encrypt(b"dek").key_id


def test_passing_reason(rig, directory, pin_file):
    """A PIN file that is too young to be used is waited for."""
    fresh = directory / "fresh-pin"
    rig.plugin.config["token"]["pin_file"] = str(fresh)
    fresh.touch(0o600)
    fresh.write_bytes(pin_file.read_bytes())
    rig.plugin.write_config()
    hang_up(rig)
    wait_for(lambda: rig.plugin.events("configuration applied"))

    assert [] == rig.plugin.events(UNAVAILABLE)


def test_tried_again(make_rig, directory, pin_file):
    """A configuration that was rejected is applied once its reason has gone."""
    rig = make_rig(token={"start_timeout": "10s"})
    rig.start()
    rig.well()
    missing = directory / "missing-pin"
    rig.plugin.config["token"]["pin_file"] = str(missing)
    rig.plugin.write_config()
    wait_for(lambda: rig.plugin.events(UNAVAILABLE))
    since = rig.admin()["config"]["since"]
    missing.touch(0o600)
    missing.write_bytes(pin_file.read_bytes())
    wait_for(lambda: rig.plugin.events("configuration applied"))

    assert since
    assert 1 == rig.metrics()["hsm_kms_config_in_force"]


def test_fault_while_the_old_workers_leave(rig):
    """A faulty file is reported even while Status has not announced the key yet."""
    rig.plugin.status()
    rig.plugin.config["keys"]["suffix"] = "two"
    rig.plugin.write_config()
    wait_for(lambda: rig.plugin.events("configuration applied"))
    unreadable(rig)
    wait_for(lambda: rig.plugin.events(NOT_TAKEN))

    assert "keys.label" in rig.admin()["config"]["error"]
    assert [] == rig.plugin.events("the replaced engine has left")
