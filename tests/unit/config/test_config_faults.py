"""Test how a faulty configuration file is refused: all faults, without quotations."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.config.load import load, parse
from hsm_kms.config.strict_yaml import load_yaml
from hsm_kms.errors import ConfigError
from tests.unit.config.test_config import CANARY, faults_of, leaves, with_

SELECTOR = "token: must have exactly one of uri, token_label, token_serial and slot"
BAD = {
    "no selector": (
        with_({"token.token_label": None}),
        [f"{SELECTOR}; found none (line 2)"],
    ),
    "two selectors": (
        with_({"token.slot": 0}),
        [f"{SELECTOR}; found token_label and slot (line 2)"],
    ),
    "no PIN file": (
        with_({"token.pin_file": None}),
        ["token: must have pin_file, unless login is none (line 2)"],
    ),
    "no API": (
        with_({"apis.v2.enabled": False}),
        ["apis: must have v2 or v1 enabled (line 6)"],
    ),
    "hang before call": (
        with_({"token.hang_timeout": "1s"}),
        ["token.hang_timeout: must not be less than call_timeout (line 6)"],
    ),
    "no token": ("version: 1\n", ["token: is required"]),
    "no version": (
        with_().replace("version: 1\n", ""),
        ["version: is required"],
    ),
    "later version": (
        with_({"version": 2, "token.module": 5}),
        ["version: must be 1; a later version needs a later hsm-kms"],
    ),
    "version is a boolean": (
        with_({"version": True}),
        ["version: must be a whole number (line 1)"],
    ),
    "number as label": (
        with_({"token.token_label": 1234}),
        ["token.token_label: must be text; quote numbers, yes and no (line 4)"],
    ),
    "many workers": (
        with_({"token.workers": 17}),
        ["token.workers: must be at most 16 (line 6)"],
    ),
    "relative module": (
        with_({"token.module": "softhsm2.so"}),
        ["token.module: must be an absolute path, beginning with / (line 3)"],
    ),
    "choice": (
        with_({"log.level": "loud"}),
        ["log.level: must be debug, info, warning or error (line 7)"],
    ),
    "wrapping of a later version": (
        with_({"apis.v1.wrapping": "plain"}),
        ["apis.v1.wrapping: must be token, fallback or software (line 8)"],
    ),
    "local keys that may not be read": (
        with_(
            {
                "apis": {"v2": {"wrapping": "fallback"}, "v1": {"enabled": True}},
                "local_keys.accept_local": False,
            }
        ),
        [
            (
                "local_keys.accept_local: must be true, because "
                "v2 and v1 can wrap in software (line 12)"
            ),
        ],
    ),
    "uses beyond the hard limit": (
        with_({"local_keys.max_uses": 2**31}),
        ["local_keys.max_uses: must be at most 2147483647 (line 7)"],
    ),
    "no use at all": (
        with_({"local_keys.max_uses": 0}),
        ["local_keys.max_uses: must be at least 1 (line 7)"],
    ),
    "local KEK without age": (
        with_({"local_keys.max_age": "0s"}),
        ["local_keys.max_age: must be more than 0s and at most 30d (line 7)"],
    ),
    "endless outage": (
        with_({"local_keys.max_offline": "31d"}),
        ["local_keys.max_offline: must be at most 30d (line 7)"],
    ),
    "long grace": (
        with_({"health.grace": "25h"}),
        ["health.grace: must be at most 1d (line 7)"],
    ),
    "health key without canaries": (
        with_({"health.canary": "session", "health.key": "k"}),
        ["health.key: must be null, because canary is session (line 8)"],
    ),
    "health key that is a KEK": (
        with_({"health.key": "k8s-kek"}),
        ["health.key: must not be keys.label: it is a key of its own (line 7)"],
    ),
    "stop at once": (
        with_({"health.stop_writes_after": "0s"}),
        ["health.stop_writes_after: must be more than 0s and at most 30d (line 7)"],
    ),
    "empty section": (with_({"health": None}), ["health: must be a mapping (line 6)"]),
    "misspelt key": (
        with_({"token.worker": 3}),
        ["token: unknown key; did you mean workers? (line 6)"],
    ),
    "misplaced key": (
        with_({"module": "/m.so"}),
        ["module: unknown key; module belongs under token (line 6)"],
    ),
    "PIN in the file": (
        with_({"token.user_pin": "1234"}),
        ["token: unknown key; put the PIN into the file that pin_file names (line 6)"],
    ),
    "unknown key": (with_({"nonsense": {}}), ["top level: unknown key (line 6)"]),
    "duplicate key": (
        with_() + "version: 1\n",
        ["version: duplicate key on lines 1 and 6"],
    ),
    "key is no text": (with_() + "12345678: x\n", ["a key is not text (line 6)"]),
    "zero duration": (
        with_({"health.interval": "0s"}),
        ["health.interval: must be more than 0s and at most 1d (line 7)"],
    ),
    "retired is no list": (
        with_({"keys.retired": "a" * 26}),
        ["keys.retired: must be a list of at most 64 key_ids (line 7)"],
    ),
    "many retired": (
        with_({"keys.retired": ["a" * 26] * 65}),
        ["keys.retired: must be a list of at most 64 key_ids (line 7)"],
    ),
    "retired is no key_id": (
        with_({"keys.retired": ["a" * 26, "A" * 26]}),
        [
            (
                "keys.retired: must contain only key_ids, "
                "as `keys list` shows them (line 7)"
            ),
        ],
    ),
    "known as no key_id": (
        with_({"keys.also_known_as": {"k8s-kek": "0a01"}}),
        [
            (
                "keys.also_known_as: must map key_ids, "
                "as they are in stored values (line 7)"
            ),
        ],
    ),
    "known as no CKA_ID": (
        with_({"keys.also_known_as": {"a" * 26: "kek"}}),
        [
            (
                "keys.also_known_as: must map to CKA_IDs in hexadecimal digits, "
                'such as "0a01" (line 7)'
            ),
        ],
    ),
    "many aliases": (
        with_({"keys.also_known_as": {"a" * 26 + f".{n}": "01" for n in range(65)}}),
        ["keys.also_known_as: must not contain more than 64 key_ids (line 7)"],
    ),
    "environment": (
        with_({"token.env": {"a b": "x"}}),
        ["token.env: must have names of letters, digits and _ only (line 6)"],
    ),
    "not a mapping": (
        "- version: 1\n",
        ["must be a YAML mapping that begins with version: 1"],
    ),
    "empty": ("", ["must be a YAML mapping that begins with version: 1"]),
    "bad YAML": ("version: 1\ntoken: [\n", ["not valid YAML at line 3, column 1"]),
    "alias": ("a: &x {}\nb: *x\n", ["not valid YAML at line 2, column 4"]),
    "tag": (
        "a: !!python/object:os.system {}\n",
        ["not valid YAML at line 1, column 4"],
    ),
    "two documents": ("a: 1\n---\nb: 2\n", ["not valid YAML at line 2, column 1"]),
    "control character": (
        "\ufeffa: 1\nb: \x01\n",
        ["not valid YAML at line 2, column 4: YAML forbids this character"],
    ),
    "endless number": ("a: " + "9" * 6000, ["not valid YAML"]),
    "endless depth": ("[" * 60000, ["not valid YAML at line 1, column 17"]),
}


def test_faults():
    """Each kind of fault is reported with its message, path and line."""
    for name, (text, faults) in BAD.items():
        assert faults == faults_of(text), name


def test_all_faults_at_once():
    """All faults of a file are reported at once."""
    told = faults_of(
        with_(
            {
                "state_dir": "var",
                "listen.mode": "0666",
                "apis.v2.enabled": False,
                "token.slot": 1,
                "token.workers": 0,
                "log.format": "xml",
                "apis.v1": {"enabled": True},
                "local_keys": {"accept_local": False, "max_uses": "many"},
                "nonsense": 1,
            }
        )
        + "log: {level: loud}\n"
    )

    paths = sorted(fault.split(":")[0] for fault in told)
    assert [
        *["listen.mode", "local_keys.accept_local", "local_keys.max_uses", "log"],
        *["log.level", "state_dir", "token", "token.workers", "top level"],
    ] == paths


def test_no_fault_quotes_what_the_file_holds():
    """No fault quotes a misplaced PIN, whether it is a key or a value."""
    paths = [*leaves(), "token.env.SOME", "nonsense", "token.x"]
    shapes = [CANARY, {CANARY: CANARY}, [CANARY], {CANARY: {CANARY: 1}}, CANARY + "\0"]
    told = []
    for path, secret in itertools.product(paths, shapes):
        try:
            parse(with_({path: secret}))
        except ConfigError as error:
            told.append((path, f"{error} {error.faults}"))

    assert len(told) > len(paths)
    assert [] == [path for path, text in told if CANARY in text]


@pytest.mark.parametrize(
    "text",
    [
        f"{CANARY}: {CANARY}\n{CANARY}: 1",
        f"a: *{CANARY}",
        f"a: !{CANARY} x",
        f"? {CANARY}\n: - b\n c: {CANARY}",
        f"a: 'x{CANARY}",
        f"%{CANARY} 1",
        f"&{CANARY} &{CANARY} x",
        f"a: {CANARY}\x01",
    ],
)
def test_no_yaml_fault_quotes_the_text(text):
    """No YAML fault quotes the text around it, as PyYAML would."""
    assert not [fault for fault in faults_of(text) if CANARY in fault]


@given(st.text(max_size=200))
def test_no_text_crashes_the_reader(text):
    """Random text raises ConfigError and no other error."""
    with pytest.raises(ConfigError):
        parse(text)


def test_load_yaml_refuses_equal_keys():
    """`load_yaml` reports duplicate keys with both lines."""
    with pytest.raises(ConfigError, match="lines 1 and 3"):
        load_yaml("a: 1\nb: {a: 2}\na: 3\n")


def test_file_with_a_byte_order_mark(tmp_path):
    """A byte order mark at the beginning of the file is ignored."""
    path = tmp_path / "config.yaml"
    path.write_text("\ufeff" + with_())

    assert "k8s" == load(path).token.token_label


def test_files_that_cannot_be_read(tmp_path):
    """The error for an unreadable file gives its path and the cause."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: 1\nscope: \xe4\n")
    large = tmp_path / "large.yaml"
    large.write_text(" " * (64 * 1024 + 1))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    absent = tmp_path / "absent.yaml"

    for path, sentence in [
        (latin, "is not UTF-8 text (line 2)"),
        (large, "is larger than 64 KiB"),
        (fifo, "is not a regular file"),
        (tmp_path, "is not a regular file"),
        (absent, "cannot be read: No such file or directory"),
        (tmp_path / ("x" * 300), "cannot be read: "),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert f"{path} {sentence}" in caught.value.faults[0]
