"""Test `check --encryption-config`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from hsm_kms.cli.check.encryption_config import STEPS
from tests.harness.command_line import run
from tests.harness.encryption_cases import CASES, right, text_of

ROOT = Path(__file__).parents[2]
CANARY = "c2VjcmV0LWNhbmFyeS1zZWNyZXQtY2FuYXJ5LTEyMzQ="


@pytest.fixture
def node(make_plugin, hsm):
    """A configuration that serves KMS v2 alone."""
    return make_plugin(hsm, apis={"v1": {"enabled": False}})


def checked(node, text, *options):
    """Return exit code and findings of the EncryptionConfiguration, read from stdin."""
    ended = node.cli(
        *("check", "--offline", "--encryption-config", "-", "-o", "json"),
        *options,
        stdin=text,
    )
    assert "" == ended.stderr
    found = json.loads(ended.stdout)["checks"]
    return ended.returncode, [each for each in found if each["id"] in STEPS]


def test_right(node):
    """If nothing is wrong, each step says so, and the name is said to be permanent."""
    file = node.directory / "enc.yaml"
    file.write_text(yaml.safe_dump(right(node.socket)))
    ended = node.cli("check", "--offline", "--encryption-config", str(file))
    code, found = checked(node, file.read_text())

    assert (0, 0) == (ended.returncode, code)
    assert f"✓ EncryptionConfiguration {file}\n" in ended.stdout
    assert (
        "✓ EncryptionConfiguration: name hsm-kms: a part of every stored value, which "
        "must never change\n"
    ) in ended.stdout
    assert [(step, "ok") for step in STEPS] == [
        (each["id"], each["outcome"]) for each in found
    ]


@pytest.mark.parametrize("name", CASES)
def test_one_fault(node, name):
    """Each fault is found by its step, with place and cure, and by no other."""
    case = CASES[name]
    code, found = checked(node, text_of(case, node.socket))
    wanted = "failed" if case.fails else "warning"
    told = [
        each
        for each in found
        if (each["id"], each["outcome"]) == (case.step, wanted)
        and each["text"].startswith(
            f"EncryptionConfiguration: {case.place}: {case.cause}"
        )
    ]

    assert 1 == len(told), found
    assert told[0]["hint"] or case.step == STEPS[0]
    if "v1" not in name:  # which this configuration does not serve
        assert case.fails == (code == 1)
    if case.step == STEPS[0]:
        assert {*STEPS[1:]} == {
            each["id"] for each in found if each["outcome"] == "skipped"
        }


def test_not_an_encryption_configuration(node):
    """A file of something else is refused, and nothing of it is quoted."""
    for text in (CANARY, f"- {CANARY}", f"{CANARY}: 1", f"a: [{CANARY}", "", "\x00"):
        code, found = checked(node, text)
        assert 1 == code
        assert "failed" == found[0]["outcome"]
        assert CANARY not in str(found)


def test_no_value_is_quoted(node):
    """Keys of other providers are neither quoted nor a fault."""
    whole = right(node.socket)
    key = {"name": "key1", "secret": CANARY}
    whole["resources"][0]["providers"].append({"aescbc": {"keys": [key]}})
    code, found = checked(node, yaml.safe_dump(whole))
    key[CANARY] = CANARY
    wrong, faults = checked(node, yaml.safe_dump(whole))

    assert (0, 1) == (code, wrong)
    assert CANARY not in str(found + faults)
    assert "providers[1].aescbc.keys[0]: unknown field" in faults[0]["text"]


def test_without_this_plugin(node):
    """What cannot be said without this plugin, or without any, is skipped."""
    skipped = {}
    for name in ("another socket", "no KMS at all"):
        _, found = checked(node, text_of(CASES[name], node.socket))
        skipped[name] = [each["id"] for each in found if each["outcome"] == "skipped"]

    of_plugins = [f"encryption-config-{of}" for of in ("name", "api")]
    of_plugins += [f"encryption-config-{of}" for of in ("timeout", "cachesize")]
    order = ["encryption-config-order"]
    assert {"another socket": order, "no KMS at all": of_plugins + order} == skipped


def test_duplicate_field(node):
    """A field that is there twice is refused, as kube-apiserver does."""
    text = yaml.safe_dump(right(node.socket)) + "kind: EncryptionConfiguration\n"
    code, found = checked(node, text)

    assert 1 == code
    assert re.search(r": kind: duplicate field on lines 2 and \d+$", found[0]["text"])


def test_v1_of_both(node):
    """The provider of v1 beside that of v2 is right where both are served."""
    node.merge("apis", {"v1": {"enabled": True}})
    node.write_config()
    whole = right(node.socket)
    (kms,) = whole["resources"][0]["providers"]
    v1 = {**kms["kms"], "apiVersion": "v1", "name": "old", "cachesize": 1000}
    whole["resources"][0]["providers"].append({"kms": v1})
    code, found = checked(node, yaml.safe_dump(whole))

    assert 0 == code
    assert ["encryption-config-api"] == [
        each["id"] for each in found if each["outcome"] != "ok"
    ]


def test_a_file_that_cannot_be_read(node):
    """A file that is missing, or of another user, fails with a hint."""
    ended = node.cli("check", "--offline", "--encryption-config", "/nonexistent/enc")

    assert 1 == ended.returncode
    assert (
        "✗ EncryptionConfiguration: /nonexistent/enc cannot be read: No such file or "
        "directory\n"
    ) in ended.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become others")
def test_as_another_user(node):
    """As another user than the server's the file is checked all the same."""
    os.chown(node.state_dir, 64712, 64712)
    os.chown(node.directory, 64712, 64712)
    node.merge("token", {"pin_file": str(node.directory / "none")})
    node.write_config()
    code, found = checked(node, yaml.safe_dump(right(node.socket)))

    assert 1 == code
    assert {"ok"} == {each["outcome"] for each in found}


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("manifests/**/*encryption-config*.yaml")),
    ids=lambda p: p.name,
)
def test_manifests(make_plugin, hsm, path):
    """No EncryptionConfiguration of manifests/ fails with the socket that it names."""
    node = make_plugin(hsm)
    text = re.sub(
        r"unix:///(run/hsm-kms/kms|run/kmsplugin/socket2|var/run/kmsplugin/kms)\.sock",
        f"unix://{node.socket}",
        path.read_text(),
    )
    code, found = checked(node, text)

    assert 0 == code, found


def test_a_stdin_that_is_read_once(node):
    """With --wait the file is not read again."""
    ended = run(
        *("check", "--offline", "--config", node.config_file, "--wait", "1s"),
        *("--encryption-config", "-"),
        stdin="x",
    )

    assert 1 == ended.returncode
    assert "✗ EncryptionConfiguration: must be a mapping\n" in ended.stdout
