"""Test `hsm-kms etcd scan`: its text and its JSON."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.etcd_cli import IN_CLEAR, OBJECTS, EtcdCli
from tests.harness.etcd_samples import (
    KEY_ID,
    OTHER_KEY_ID,
    etcdctl_json,
    v1,
    v2,
    written,
)

HOSTILE = "\x1b]0;owned\x07\u202e"


@pytest.fixture
def cli(monkeypatch):
    """Provide the commands."""
    return EtcdCli(monkeypatch)


@pytest.fixture
def dump(tmp_path):
    """Provide a file with the output of etcdctl."""
    return written(tmp_path / "dump.json", OBJECTS)


def test_scan(dump, cli):
    """`scan` prints encrypted objects by row, others in one line, and counts by key."""
    out, err = cli.scan(dump)

    assert "" == err
    assert [
        f"7 objects below /registry/ in {dump}, revision 7",
        "",
        f"OBJECTS  RESOURCE    PROVIDER  NAME    KEY_ID{' ' * 22}WRAPPED BY",
        "      1  configmaps  kms v2    aws     arn:1",
        f"      1  secrets     kms v1    hsm-v1  {KEY_ID}  local KEK",
        f"      2  secrets     kms v2    hsm     {KEY_ID}  token",
        "",
        (
            "3 unencrypted objects of resources of which none is encrypted: leases 1, "
            "pods 1, widgets.example.com 1"
        ),
        "",
        "OBJECTS  UNDER KEY",
        f"      3  {KEY_ID}",
        "      1  arn:1",
    ] == out.splitlines()


def test_scan_names_all_that_is_in_clear(dump, cli):
    """With --all every resource has a row."""
    out, _ = cli.scan(dump, "--all")

    assert re.search(r"^ +1  pods +unencrypted$", out, re.MULTILINE)
    assert "of which none is encrypted" not in out


def test_scan_puts_first_what_should_not_be_in_clear(tmp_path, cli):
    """Unencrypted Secrets come first, then damaged values, each with an example."""
    held = OBJECTS | {
        "/registry/secrets/default/plain": IN_CLEAR,
        "/registry/secrets/default/cut": v2()[:-50],
    }
    out, _ = cli.scan(written(tmp_path / "dump.json", held))
    lines = out.splitlines()

    assert re.fullmatch(r" +1  secrets +unencrypted", lines[3])
    assert "         such as /registry/secrets/default/plain" == lines[4]
    assert re.fullmatch(r" +1  secrets +kms v2 +hsm", lines[5])
    assert (
        "         the envelope is truncated or corrupt; "
        "such as /registry/secrets/default/cut"
    ) == lines[6]
    assert "hunter2" not in out


def test_scan_as_json(dump, cli):
    """`scan -o json` prints the same, and more."""
    out, _ = cli.scan(dump, "-o", "json", "--resource", "pods")
    told = json.loads(out)

    assert (7, 1, 0, 0) == (
        told["objects"],
        told["unencrypted"],
        told["unreadable"],
        told["others"],
    )
    assert {KEY_ID: 3, "arn:1": 1} == told["keys"]
    assert {
        "objects": 1,
        "resource": "pods",
        "provider": "identity",
        "version": "",
        "name": "",
        "key_id": None,
        "kind": "",
        "problem": "",
        "exposed": True,
        "example": "/registry/pods/default/e",
    } == told["rows"][0]
    assert (str(dump), "/registry/", 7, []) == (
        told["source"],
        told["prefix"],
        told["revision"],
        told["fail_if"],
    )


@pytest.mark.parametrize("name", ["deployments.apps", "deployments"])
def test_a_built_in_resource_with_its_group(tmp_path, cli, name):
    """--resource takes the names of an EncryptionConfiguration; keys lack the group."""
    file = written(tmp_path / "d", {"/registry/deployments/default/d": IN_CLEAR})
    out, err = cli.scan(file, "--resource", name, "--fail-if", "unencrypted", code=1)

    assert re.search(r"^ +1  deployments +unencrypted$", out, re.MULTILINE)
    assert "hsm-kms: 1 object unencrypted that should not be" in err


def test_a_resource_that_etcd_does_not_hold(dump, cli):
    """A name that no object has is named, because it may be mistyped."""
    options = ("--resource", "pod", "--resource", "widgets.example.com")
    _, err = cli.scan(dump, *options)

    assert "no object of pod was found: is that its name, in the plural?\n" == err


@pytest.mark.parametrize("name", ["", "*.apps", "*.*", "Pods", "services/specs"])
def test_not_the_name_of_a_resource(dump, cli, name):
    """A name that no resource can have is refused: nothing would be unencrypted."""
    _, err = cli.scan(dump, "--resource", name, code=2)

    assert f"{name!r} is not the name of one resource" in err


def test_may_the_key_go(dump, cli):
    """--fail-if key_id= succeeds only if nothing is stored under the key."""
    yes, err = cli.scan(dump, "--fail-if", f"key_id={OTHER_KEY_ID}")
    _, no = cli.scan(dump, "--fail-if", f"key_id={KEY_ID}.suffix", code=1)

    assert yes.endswith(f"\n0 objects under {OTHER_KEY_ID}: no stored value needs it\n")
    assert "" == err
    assert (
        f"hsm-kms: 3 objects under {KEY_ID}.suffix\n"
        "hint: unless it is the current key, run `hsm-kms migrate` to re-encrypt them\n"
        == no
    )


def test_fail_if_anything_is_in_clear(dump, tmp_path, cli):
    """--fail-if unencrypted counts Secrets and the resources of --resource."""
    yes, _ = cli.scan(dump, "--fail-if", "unencrypted")
    _, no = cli.scan(dump, "--fail-if", "unencrypted", "--resource", "pods", code=1)

    assert yes.endswith("\n0 objects unencrypted that should not be\n")
    assert no == (
        "hsm-kms: 1 object unencrypted that should not be\n"
        "hint: nothing of pods is encrypted: see that a provider other than identity "
        "comes first for it in the EncryptionConfiguration, then run `hsm-kms migrate "
        "--resource pods`\n"
    )


def test_what_to_do_with_what_was_found(tmp_path, cli):
    """The hint names the resources that must be re-encrypted."""
    held = {
        "/registry/secrets/default/plain": IN_CLEAR,
        "/registry/secrets/default/a": v2(),
        "/registry/example.com/widgets/w": v2(),
        "/registry/configmaps/default/plain": IN_CLEAR,
    }
    dump = written(tmp_path / "dump.json", held)
    conditions = ("--fail-if", f"key_id={KEY_ID}", "--fail-if", "unencrypted")
    _, err = cli.scan(dump, *conditions, "--resource", "configmaps", code=1)

    assert err.splitlines()[1] == (
        "hint: unless it is the current key, run `hsm-kms migrate --resource secrets "
        "--resource widgets.example.com` to re-encrypt them; run `hsm-kms migrate` to "
        "encrypt them; nothing of configmaps is encrypted: see that a provider other "
        "than identity comes first for it in the EncryptionConfiguration, then run "
        "`hsm-kms migrate --resource configmaps`"
    )


def test_a_resource_whose_group_is_not_stored(tmp_path, cli):
    """The key of a built-in resource lacks its group, so the hint names everything."""
    held = {
        "/registry/deployments/default/a": v2(),
        "/registry/secrets/default/a": v2(),
    }
    dump = written(tmp_path / "dump.json", held)
    _, err = cli.scan(dump, "--fail-if", f"key_id={KEY_ID}", code=1)

    assert "run `hsm-kms migrate --resource '*.*'` to re-encrypt them\n" in err


def test_fail_if_for_scripts(dump, cli):
    """With -o json the conditions are in the JSON, with the same exit code."""
    conditions = ["--fail-if", f"key_id={KEY_ID}", "--fail-if", "unencrypted"]
    out, err = cli.scan(dump, "-o", "json", *conditions, code=1)

    assert [
        {"condition": f"key_id={KEY_ID}", "objects": 3, "met": True},
        {"condition": "unencrypted", "objects": 0, "met": False},
    ] == json.loads(out)["fail_if"]
    assert err.startswith(f"hsm-kms: 3 objects under {KEY_ID}\n")


@pytest.mark.parametrize(
    "condition", ["key_id=", "key_id=abc", f"key_id={KEY_ID[:-1]}", "encrypted", ""]
)
def test_a_mistyped_condition_is_bad_usage(condition, dump, cli):
    """A mistyped condition is refused, because it would match nothing."""
    _, err = cli.scan(dump, "--fail-if", condition, code=2)

    assert "is neither unencrypted nor key_id= and a key_id" in err


def test_a_scan_of_nothing_proves_nothing(dump, cli):
    """A prefix that matches nothing is an error, not a count of zero."""
    _, err = cli.scan(
        dump, "--prefix", "/kubernetes.io/", "--fail-if", "unencrypted", code=1
    )

    assert err.startswith(f"hsm-kms: no object below '/kubernetes.io/' in {dump}\n")
    assert "--etcd-prefix" in err


def test_a_broken_file_proves_nothing(tmp_path, cli):
    """A truncated file is an error, whatever was counted before."""
    path = tmp_path / "dump.json"
    path.write_bytes(etcdctl_json(OBJECTS)[:-40])
    out, err = cli.scan(path, "--fail-if", f"key_id={OTHER_KEY_ID}", code=1)

    assert "" == out
    assert "is truncated or not JSON" in err


def test_nothing_hostile_reaches_the_terminal(tmp_path, cli):
    """Control characters in names, key_ids and keys are escaped."""
    held = {
        f"/registry/secrets/{HOSTILE}/a": v2(b"x", HOSTILE, key_id=HOSTILE),
        f"/registry/{HOSTILE}/n/b": v1(b"y" * 40, HOSTILE.encode()),
        "/registry/pods/n/c": b"k8s:enc:" + HOSTILE.encode() + b":v1:",
        f"/registry/secrets/n/{HOSTILE}": b"k8s:enc:kms:v2:\xff\x1b[2J:" + b"x",
        f"/registry/pods/n/{HOSTILE}": IN_CLEAR,
        f"/registry/{HOSTILE * 2}/n/b": IN_CLEAR,
    }
    path = written(tmp_path / "dump.json", held)
    shown = [cli.scan(path), cli.scan(path, "--all"), cli.scan(path, "-o", "json")]
    shown += [
        (done.out, done.err)
        for key in [*held, f"/registry/{HOSTILE}"]
        for done in [cli.run("show", key, "--from-json", path)]
    ]

    for out, err in shown:
        assert re.fullmatch(r"[\n -~]*", out + err)
