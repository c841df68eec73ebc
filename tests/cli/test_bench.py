"""Test `bench` on a real token: what it measures, what it leaves, and when it stops."""

from __future__ import annotations

import json
import re

import pytest

from hsm_kms.http.client import read_status
from tests.cli.keys_rig import Keys
from tests.harness.token_keys import LABEL
from tests.harness.wait import wait_for

QUICK = ("--yes", "--time", "400ms")
CALLS = ("C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
SLOW = tuple(f"{name} sleep=100" for name in CALLS)  # so that more sessions pay off
# Any machine makes so few calls: the limit is that of --rate.
LIMITED = ("--sessions", "1", "--time", "3s", "--rate", "5")
TEXT = r"""
measured with a temporary key in each session, mechanism aes-gcm-caller-iv
SESSIONS +PER SECOND +ENCRYPT +P99 +DECRYPT +P99
1 +\d+( +\d+\.\d ms){4}
(?:✓ fast enough for any cluster with|! fast enough, but slower.*
  hint: .*) KMS v2.*
✓ 1 session made \d+ calls a second, which is the limit of --rate; more were not .*
✓ a start of the API server, KMS v2: \S+ m?s of the token for each seed in etcd; .*
✓ KMS v1, wrapping: software: \S+ m?s of the token for each local KEK, one for 1,048.*
✓ KMS v1, wrapping: token: \S+ \S+ of the token for 10,000 Secrets, one after the other
"""


@pytest.fixture
def node(make_plugin, hsm, shim):
    """A node whose token is behind the shim; no server runs."""
    plugin = make_plugin(hsm, token={"module": str(shim.module)})
    plugin.config["token"]["env"] |= shim.env
    plugin.write_config()
    return plugin


def measured(node, *options, code=0):
    """Return what JSON says, and stderr."""
    ended = node.cli("bench", *QUICK, "-o", "json", *options)
    assert code == ended.returncode, ended.stderr
    report = json.loads(ended.stdout)
    assert report["ok"] == (code == 0)
    return report, ended.stderr


def texts(report):
    return {each["id"]: each["text"] for each in report["checks"]}


def test_text(node):
    """The table comes first, then the answers, one in a line."""
    ended = node.cli("bench", "--yes", *LIMITED)

    assert (0, "") == (ended.returncode, ended.stderr)
    assert re.fullmatch(TEXT.lstrip(), ended.stdout), ended.stdout


def test_json(node):
    """JSON has each step with its times, and the costs that follow from them."""
    report, _ = measured(node, *LIMITED, "--secrets", "5000")
    (step,) = report["steps"]

    assert {"sessions": 1, "limited": True} == {
        name: step[name] for name in ("sessions", "limited")
    }
    assert {"p50", "p90", "p99", "max"} == {*step["encrypt_ms"], *step["decrypt_ms"]}
    assert (5000, 1) == (report["secrets"], report["sessions_that_pay_off"])
    cost = report["restart_seconds"]
    assert 5000 == pytest.approx(cost["v1_by_token"] / cost["one_seed"])


def test_it_leaves_nothing(node, shim):
    """The keys on the token, the nonce budget and the open sessions are as before."""
    before = Keys(node).json("list")
    measured(node)

    assert before == Keys(node).json("list")
    assert 1 <= shim.calls("C_GenerateKey")
    assert 0 == shim.calls("C_DestroyObject")
    assert not (node.state_dir / "nonces.json").exists()
    wait_for(lambda: not shim.sessions())


def test_slow_preparation(node, shim):
    """What prepares a session may take longer than call_timeout, as in a server."""
    node.merge("token", {"call_timeout": "2s"})
    node.write_config()
    shim.set("C_GenerateKey sleep=2500")

    measured(node, "--sessions", "1")


def test_no_time(node):
    """Something is measured, however short the time is."""
    report, _ = measured(node, "--time", "1us", "--sessions", "1")
    [step] = report["steps"]

    assert 0 < step["encrypt_ms"]["p50"]
    assert 0 < step["decrypt_ms"]["p50"]


def test_more_sessions(node, shim):
    """While twice as many sessions are faster, more are opened, to the given number."""
    shim.set(*SLOW)
    report, _ = measured(node, "--sessions", "3", "--rate", "9000", "--time", "6s")

    assert [1, 2, 3] == [step["sessions"] for step in report["steps"]]


def test_the_rate_is_kept(node, shim):
    """There are never more calls in a second than --rate allows."""
    report, _ = measured(node, "--rate", "20", "--time", "2s", "--sessions", "1")
    (step,) = report["steps"]

    made = shim.calls("C_Encrypt") + shim.calls("C_Decrypt")
    # Besides, the fingerprint is computed, and the mechanism is tried.
    assert made <= 20 * step["seconds"] + 10


def test_pairs(node):
    """A node that uses AES-CBC with HMAC is measured with pairs of keys."""
    node.config["keys"] = {"mechanism": "aes-cbc-hmac-sha256"}
    node.write_config()

    assert "aes-cbc-hmac-sha256" == measured(node)[0]["mechanism"]


def test_no_gcm(node, shim):
    """A token without AES-GCM is measured with pairs as well."""
    shim.set("no_gcm")

    assert "aes-cbc-hmac-sha256" == measured(node)[0]["mechanism"]


@pytest.fixture
def no_temporary_keys(node, shim):
    """A node whose token generates no keys."""
    shim.set("C_GenerateKey rv=0x54")
    return node


def test_without_temporary_keys(no_temporary_keys, shim):
    """The key of the server is not used unless the operator says so."""
    ended = no_temporary_keys.cli("bench", *QUICK)

    assert (1, "") == (ended.returncode, ended.stdout)
    assert "generates no temporary key: C_GenerateKey returned CKR_F" in ended.stderr
    assert "hint: to measure with the current key, give --with-kek" in ended.stderr
    assert 0 == shim.calls("C_Encrypt")


def test_with_kek(no_temporary_keys, shim):
    """Every encryption under the key of the server counts in its nonce budget."""
    key_id = Keys(no_temporary_keys).json("list")[0]["key_id"]
    before = shim.calls("C_Encrypt")
    report, said = measured(no_temporary_keys, "--with-kek")
    counts = json.loads((no_temporary_keys.state_dir / "nonces.json").read_text())

    assert f"the key {key_id}" == report["key"]
    assert f"warning: measuring with the key {key_id}; its nonce budget" in said
    assert 0 < counts["counts"][key_id] <= shim.calls("C_Encrypt") - before


def test_it_stops_at_the_first_error(node, shim):
    """An error ends the measurement: nothing is tried again, and the cause is said."""
    shim.set("C_Encrypt skip=5 rv=0x30")
    report, _ = measured(node, code=1)

    assert "stopped: C_Encrypt returned CKR_DEVICE_ERROR" == texts(report)["trouble"]
    assert 1 == shim.acted("C_Encrypt")
    assert [] == report["steps"]


def test_no_more_sessions(node, shim):
    """A token that grants no more sessions ends it, and what was measured is shown."""
    shim.set(*SLOW, "max_sessions=2")  # one of them is the control session
    report, _ = measured(node, "--rate", "9000", "--time", "4s", code=1)

    assert [1] == [step["sessions"] for step in report["steps"]]
    assert "CKR_SESSION_COUNT" in texts(report)["trouble"]
    assert "the measurement was stopped" in texts(report)["sessions"]
    wait_for(lambda: not shim.sessions())


def test_sessions_to_spare(node, shim):
    """If the token reports a limit, the server keeps the sessions that it needs."""
    node.config["token"] |= {"workers": 1, "sessions_per_worker": 1}
    node.write_config()
    shim.set(*SLOW, "max_session_count=7")  # (1 + 1) * 2 workers, and the control one
    report, said = measured(node, "--rate", "9000", "--time", "3s")

    assert [1, 2] == [step["sessions"] for step in report["steps"]]
    assert "the token has 2 sessions to spare: opening no more" in said


def test_no_sessions_to_spare(node, shim):
    """If the server can need all sessions of the token, none is opened."""
    node.config["token"] |= {"workers": 1, "sessions_per_worker": 1}
    node.write_config()
    shim.set("max_session_count=5")
    ended = node.cli("bench", *QUICK)

    assert 1 == ended.returncode
    assert "the token grants 5 sessions, and the server can need 4" in ended.stderr
    assert 0 == shim.calls("C_GenerateKey")


def test_one_session_without_locking(node, shim):
    """A module that several threads cannot use is measured with one session."""
    shim.set("cant_lock")
    report, said = measured(node, "--rate", "9000")

    assert [1] == [step["sessions"] for step in report["steps"]]
    assert "the module does not support locking" in said


def test_it_asks(node, shim):
    """Without --yes it says what it will do, and does nothing unless it can ask."""
    ended = node.cli("bench", "--sessions", "4", "--with-kek")

    assert (2, "") == (ended.returncode, ended.stdout)
    assert "at most 4 sessions, beside those of a running server" in ended.stderr
    assert "or with the current key if it generates none" in ended.stderr
    assert "stdin is not a terminal, so give --yes" in ended.stderr
    assert {} == shim.counts()


def test_beside_a_server(plugin):
    """A server that runs stays ok, and its sessions are left alone."""
    workers = plugin.worker_pids()
    measured(plugin, "--rate", "50")

    assert ("ok", workers) == (plugin.healthz(), plugin.worker_pids())


def test_beside_a_server_in_trouble(make_plugin, empty_hsm):
    """The token of a server that is not ok is not measured."""
    node = make_plugin(empty_hsm).start()
    wait_for(lambda: read_status(node.directory / "admin.sock"))
    ended = node.cli("bench", *QUICK)

    assert (1, "") == (ended.returncode, ended.stdout)
    assert re.match(
        "hsm-kms: the server of this node is (starting|failed)", ended.stderr
    )
    assert "run `hsm-kms status" in ended.stderr


@pytest.mark.parametrize("given", ["0s", "301s", "soon"])
def test_time(node, given):
    """The time is more than nothing and at most five minutes."""
    ended = node.cli("bench", "--yes", "--time", given)

    assert 2 == ended.returncode
    assert "--time" in ended.stderr


def test_the_key_that_it_names(node):
    """A temporary key has neither the label nor the look of a key of the server."""
    assert "temporary" in measured(node)[0]["key"]
    assert [LABEL] == [key["label"] for key in Keys(node).json("list")]
