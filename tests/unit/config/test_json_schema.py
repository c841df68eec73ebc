"""Test the JSON Schema of the configuration file with the jsonschema library."""

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from hsm_kms.config.json_schema import json_schema
from hsm_kms.config.load import load_yaml, parse
from hsm_kms.config.schema import sections
from hsm_kms.errors import ConfigError
from tests.unit.config.test_config import leaves, with_

ROOT = Path(__file__).parents[3]
KEY = "a" * 26
EXAMPLE = re.compile(r"```yaml\n(version: 1\n.*?)```", re.DOTALL)

# setting → values that the file may have, values that both refuse, and values that
# only hsm-kms refuses
VALUES = {
    "version": ([1], [0, 2, "1", True, None], []),
    "state_dir": (["/a", "/"], ["a", 1, None], ["/a\n"]),
    "scope": (["", "x" * 64], ["x" * 65, 1, None], ["ü" * 64, "a\n"]),
    "listen.socket": (
        ["/a", "unix:///run/k.sock", "/" + "s" * 106],
        ["a", "/a/", "/" + "s" * 120, None, "unix://host/a"],
        ["/@a", "/" + "s" * 107],
    ),
    "listen.mode": (["0600", "0620", "0640", "660"], ["0666", 384, "rw"], []),
    "listen.group": ([None, "kms", "10002"], [10002, ""], ["ü" * 32]),
    "listen.lock_wait": (["0s", "1d"], ["1", 5, "-1s", None], ["2d"]),
    "apis.v2.enabled": ([True], ["yes", 1], []),
    "apis.v2.wrapping": (["token", "fallback", "software"], ["hsm", None], []),
    "apis.v2.version": (["v2", "v2beta1"], ["v1"], []),
    "apis.v1.enabled": ([True, False], [None], []),
    "apis.v1.wrapping": (["token", "software"], [True], []),
    "token.module": (["/m.so"], ["m.so", 5], []),
    "token.uri": ([None], ["pkcs11:token=a"], []),  # beside token_label
    "token.token_label": (["k8s"], ["", 1234, "x" * 33, None], ["ü" * 32]),
    "token.token_serial": ([None], [1234], []),
    "token.slot": ([None], [-1, "1"], []),
    "token.pin_file": (["/pin"], ["pin", None], []),
    "token.shared": ([True, False], ["true"], []),
    "token.workers": ([1, 16], [0, 17, "2", 1.5], []),
    "token.sessions_per_worker": ([1, 64], [0, 65], []),
    "token.session_wait": (["500ms"], [1, "1w"], ["0s"]),
    "token.call_timeout": (["1s"], [True], ["0s", "1m"]),
    "token.hang_timeout": (["2s"], [None], ["1s"]),
    "token.start_timeout": (["5m"], ["5 m"], ["2d"]),
    "token.env": (
        [{}, {"A_1": ""}],
        [{"1": "a"}, {"a-b": "c"}, {"A": 1}, []],
        [{"A": "b\n"}],
    ),
    "token.init_args": ([None, "p=1"], ["", 1, "x" * 4097], []),
    "token.login": (["user", "none", "so", "0x80000001"], ["root", "0X1", 1], []),
    "token.read_write": ([True], [1], []),
    "keys.label": (["k"], ["", 5], [None]),
    "keys.ids": ([[], ["0a", "FF"]], ["0a", ["0"], ["x"], ["00"] * 65], [["0a", "0A"]]),
    "keys.mechanism": (["auto", "aes-gcm"], ["des"], []),
    "keys.gcm_iv": (["caller"], [None], []),
    "keys.fingerprint": (["block", "cka_id"], ["label"], []),
    "keys.current": ([None, KEY, f"{KEY}.a1"], ["A" * 26, f"{KEY}."], []),
    "keys.suffix": ([None, "2026a"], ["", "A", "a" * 17], []),
    "keys.retired": ([[], [KEY]], [KEY, ["a"], [1]], []),
    "keys.also_known_as": ([{}, {KEY: "0A01"}], [{KEY: 1}, {"a": "00"}, []], []),
    "keys.foreign": (["refuse", "decrypt"], ["accept"], []),
    "keys.policy": (["enforce", "warn"], ["off"], []),
    "keys.discover": (["20s"], ["x"], ["0s"]),
    "local_keys.max_age": (["30d"], [7], ["31d"]),
    "local_keys.max_uses": ([1, 2**31 - 1], [0, 2**31], []),
    "local_keys.max_offline": (["0s"], [None], ["31d"]),
    "local_keys.accept_local": ([True], ["no"], []),
    "local_keys.verify_wraps": ([False], [0], []),
    "health.interval": (["1s"], [20], ["0s"]),
    "health.canary": (["crypto", "session"], ["off", None], []),
    "health.key": ([None, "health"], ["", 5], ["k8s-kek"]),
    "health.grace": (["0s"], [""], ["2d"]),
    "health.stop_writes_after": ([None, "3m"], [3], ["0s"]),
    "http.listen": (
        [None, "127.0.0.1:0", "[::1]:80"],
        ["localhost:80", 80, "127.0.0.1"],
        ["127.1:80", "127.0.0.1:65536"],
    ),
    "http.admin_socket": ([None, "/a"], ["a"], ["/run/hsm-kms/kms.sock.lock"]),
    "log.level": (["debug", "error"], ["trace"], []),
    "log.format": (["json", "text"], ["xml"], []),
    "audit.file": ([None, "/a/b"], ["a", 1], ["/a\n"]),
    "audit.stdout": ([True, False], ["yes", 1], []),
    "audit.on_error": (["continue", "refuse"], ["stop", None], []),
}


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(json_schema())
    return Draft202012Validator(json_schema())


def is_loaded(text):
    try:
        parse(text)
    except ConfigError:
        return False
    return True


def test_every_setting_is_tried():
    """The table of values has a row for each setting."""
    assert set(leaves()) == set(VALUES)


@pytest.mark.parametrize("setting", VALUES)
def test_values(validator, setting):
    """The schema accepts what hsm-kms accepts, and refuses what the table says."""
    good, bad, only_loader = VALUES[setting]
    expected = [(good, True, True), (bad, False, False), (only_loader, False, True)]
    for values, is_good, is_valid in expected:
        for value in values:
            text = with_({setting: value})

            assert is_good == is_loaded(text), value
            assert is_valid == validator.is_valid(load_yaml(text)), value


@pytest.mark.parametrize("path", sections())
def test_unknown_keys(validator, path):
    """An unknown key is refused in every section."""
    text = with_({f"{path}.unknown".lstrip("."): 1})

    assert not is_loaded(text)
    assert not validator.is_valid(load_yaml(text))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "version: 1",
        "version: 1\ntoken: {}",
        "version: 1\ntoken: null",
        with_({"token.slot": 1}),
        with_({"token.token_label": None}),
        with_({"apis.v2.enabled": False}),
        with_({"audit.file": "/a", "audit.stdout": True}),
        "version: 1\ntoken: {token_label: a, pin_file: /pin}",
    ],
)
def test_rules_of_several_settings(validator, text):
    """A file without token, PIN file or API, or with two of one kind, is refused."""
    assert not is_loaded(text)
    assert not validator.is_valid(load_yaml(text))


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ntoken: {uri: 'pkcs11:token=a?module-path=/m.so&pin-source=/p'}",
        "version: 1\ntoken: {module: /m.so, slot: 0, login: none}",
        with_({"apis": {"v2": {"enabled": False}, "v1": {"enabled": True}}}),
    ],
)
def test_what_the_rules_allow(validator, text):
    """A URI can name module and PIN file; a token without login needs none."""
    assert is_loaded(text)
    assert validator.is_valid(load_yaml(text))


def examples():
    """Yield every configuration of the manifests and the pages."""
    for path in sorted((ROOT / "manifests").rglob("*.yaml")):
        text = path.read_text()
        if re.search(r"^version: 1$", text, re.MULTILINE):
            yield pytest.param(text, id=str(path.relative_to(ROOT)))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for number, text in enumerate(EXAMPLE.findall(path.read_text())):
            yield pytest.param(text, id=f"{path.relative_to(ROOT)} {number}")


@pytest.mark.parametrize("text", list(examples()))
def test_examples(validator, text):
    """The schema accepts each configuration that the project shows."""
    assert is_loaded(text)
    assert [] == list(validator.iter_errors(load_yaml(text)))


def test_defaults_are_written_as_the_file_has_them(validator):
    """A file that repeats every default of the schema is valid, and changes nothing."""
    schema = json_schema()

    def defaults(section):
        return {
            name: defaults(schema["$defs"][field["$ref"].rpartition("/")[2]])
            if "$ref" in field
            else field["default"]
            for name, field in section["properties"].items()
            if "$ref" in field or "default" in field
        }

    smallest = load_yaml(with_())
    token = defaults(schema)["token"] | smallest["token"]
    text = yaml.safe_dump(smallest | defaults(schema) | {"token": token})

    assert [] == list(validator.iter_errors(load_yaml(text)))
    assert parse(text) == parse(with_())
