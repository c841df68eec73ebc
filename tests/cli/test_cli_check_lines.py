"""Test that docs/troubleshooting.md has what `check` says about PIN, token and keys."""

from __future__ import annotations

import os
import re

import pytest

from tests.harness.softhsm import PIN
from tests.harness.token_keys import make_key
from tests.harness.troubleshooting import is_explained


def pin_of(content, mode=0o600):
    """Return how to give the node a PIN file of its own, with this content."""

    def arrange(node):
        path = node.directory / "pin"
        node.config["token"]["pin_file"] = str(path)
        if content is not None:
            path.write_bytes(content)
            path.chmod(mode)

    return arrange


def rejected(node):
    pin_of(b"1111-Wrong-PIN")(node)
    node.write_config()
    node.cli("check")


def replaced(node):
    rejected(node)
    (node.directory / "pin").write_text(PIN)


def setting(section, values):
    """Return how to set these keys of a section."""
    return lambda node: node.merge(section, values)


def configured(text):
    """Return how to give SoftHSM a configuration."""

    def arrange(node):
        path = node.directory / "softhsm2.conf"
        path.write_text(text.replace("AT", str(node.directory)))
        node.merge("token", {"env": {"SOFTHSM2_CONF": str(path)}})

    return arrange


def no_module(node):
    path = node.directory / "text.so"
    path.write_text("# no module\n" * 100)
    node.merge("token", {"module": str(path)})


def keys(*templates):
    """Return how to make keys."""

    def arrange(node):
        for cka_id, template in enumerate(templates):
            make_key(node.hsm, bytes([cka_id]), **template)

    return arrange


def open_state(node):
    node.state_dir.chmod(0o777)


def file_for_state(node):
    path = node.directory / "file"
    path.touch(mode=0o600)
    node.config["state_dir"] = str(path)


# How a fault is arranged, on a token without a key · how the line of `check` begins
CASES = [
    (open_state, "state_dir: every user can write to AT/state"),
    (
        file_for_state,
        "state directory: the state directory AT/file cannot be used: Not a directory",
    ),
    (
        pin_of(None),
        "PIN: the PIN file AT/pin cannot be read: No such file or directory",
    ),
    (pin_of(b""), "PIN: the PIN file AT/pin is empty"),
    (pin_of(b"1", 0o644), "PIN: the PIN file AT/pin is open to others (mode 0644)"),
    (pin_of(b"1\r\n"), "PIN: AT/pin ends with a carriage return"),
    (pin_of(b"\xef\xbb\xbf1"), "PIN: AT/pin begins with a byte-order mark"),
    (pin_of(b"PIN=1"), "PIN: AT/pin has a name before the PIN"),
    (
        pin_of(b"1"),
        "PIN: the token rejected the PIN in AT/pin: C_Login returned CKR_PIN_INCORRECT",
    ),
    (rejected, "PIN: the token rejected the PIN in the PIN file"),
    (replaced, "PIN: the token reports failed PIN tries, so an unproven PIN is not"),
    (no_module, "token: cannot load the module: AT/text.so: invalid ELF header"),
    (
        setting("token", {"token_label": "another"}),
        "token: no token matches token_label 'another'; seen: label 'test'",
    ),
    (
        configured("directories.tokendir = AT\n"),
        "token: no token matches token_label 'test'; to user UID the module shows no",
    ),
    (
        configured("directories.tokendir = /nowhere\n"),
        "token: C_Initialize returned CKR_GENERAL_ERROR",
    ),
    (
        setting("token", {"login": "0x7"}),
        "token: C_Login returned CKR_USER_TYPE_INVALID",
    ),
    (keys(), "key: no AES key labelled 'k8s-kek' is on the token"),
    (
        keys({"label": "another"}),
        "key: no AES key labelled 'k8s-kek' is on the token; AES keys on it are lab",
    ),
    (keys({}, {}), "key: 2 keys are labelled 'k8s-kek': KEY_ID, "),
    (
        setting("keys", {"current": "a" * 26}),
        "key: the key that keys.current names, KEY_ID, is not on the token",
    ),
    (
        keys({"EXTRACTABLE": True}),
        "key: key KEY_ID breaks the policy: CKA_EXTRACTABLE is True",
    ),
    (
        keys({"bits": 128}),
        "key: key KEY_ID breaks the policy: CKA_VALUE_LEN is 16 bytes, not 32 bytes",
    ),
]


@pytest.mark.parametrize(("arrange", "line"), CASES)
def test_line(make_plugin, empty_hsm, arrange, line):
    """`check` prints the line, with a hint below it, and the page has it."""
    node = make_plugin(empty_hsm)
    arrange(node)
    node.write_config()
    shown = node.cli("check").stdout.replace(str(node.directory), "AT")
    shown = re.sub("[a-z2-7]{26}", "KEY_ID", shown)
    shown = shown.replace(f"to user {os.geteuid()} ", "to user UID ")
    lines = shown.splitlines()
    at, *_ = (n for n, each in enumerate(lines) if each.startswith("✗"))

    assert lines[at].startswith(f"✗ {line}")
    assert lines[at + 1].startswith("  hint: ")
    assert is_explained(f"✗ {line}", {"AT": "/path", "UID": "10001"})
