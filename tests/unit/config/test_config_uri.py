"""Test token.uri and keys.ids: which settings they give, and which they exclude."""

import re
from pathlib import Path

import pytest
import yaml

from hsm_kms.config.load import effective, parse
from hsm_kms.server.settings import configure_message, key_settings
from tests.unit.config.test_config import CANARY, faults_of, with_

WHOLE = (
    "pkcs11:token=k8s;serial=5c3d;manufacturer=M%20co;model=v2;slot-id=7;"
    "library-version=2.6;object=kek;id=%0a%ff?module-path=/m.so&pin-source=/pin"
)
BOTH = "is given in token.uri too"


def uri(text, **token):
    return {"token": {"uri": text} | token}


def test_uri_alone():
    """A URI can give module, token, PIN file and key."""
    config = parse(with_(uri(WHOLE)))
    message = configure_message(config)

    assert Path("/m.so") == config.token.module
    assert Path("/pin") == config.token.pin_file
    assert ("k8s", "5c3d", 7) == (
        message.token_label,
        message.token_serial,
        message.slot,
    )
    assert ("M co", "v2") == (message.manufacturer, message.model)
    assert {"library-version": "2.6"} == message.library
    assert "kek" == key_settings(config).label
    assert (b"\x0a\xff",) == key_settings(config).ids


def test_uri_and_keys_share_the_work():
    """Settings that the URI does not give are read from their own keys."""
    text = with_(
        uri("pkcs11:token=k8s", module="/m.so", pin_file="/pin")
        | {"keys": {"label": "kek", "ids": ["0A"]}}
    )
    config = parse(text)

    assert Path("/m.so") == config.token.module
    assert ("kek", ("0a",)) == (config.keys.label, config.keys.ids)


@pytest.mark.parametrize(
    ("text", "keys", "label", "ids"),
    [
        ("pkcs11:token=t", {}, "k8s-kek", ()),
        ("pkcs11:token=t;object=k", {}, "k", ()),
        ("pkcs11:token=t;id=%0a", {}, None, ("0a",)),
        ("pkcs11:token=t;id=%0a", {"label": "k"}, "k", ("0a",)),
        ("pkcs11:token=t;object=k;id=%0a", {}, "k", ("0a",)),
        ("pkcs11:token=t;object=k", {"ids": ["0a", "0b"]}, "k", ("0a", "0b")),
        ("pkcs11:token=t", {"label": None, "ids": ["0a"]}, None, ("0a",)),
    ],
)
def test_which_keys(text, keys, label, ids):
    """An `id` without `object` means any label; otherwise both must match."""
    token = uri(text, module="/m.so", pin_file="/pin")
    config = parse(with_(token | {"keys": keys}))

    assert (label, ids) == (config.keys.label, config.keys.ids)
    assert config == parse(yaml.safe_dump(effective(config)))


def test_effective_shows_the_uri_and_nothing_twice():
    """`config show` prints settings of the URI once, and its output reads back."""
    config = parse(with_(uri(WHOLE)))
    shown = effective(config)

    assert WHOLE == shown["token"]["uri"]
    assert shown["token"]["module"] is None
    assert ([], None) == (shown["keys"]["ids"], shown["keys"]["label"])
    assert config == parse(yaml.safe_dump(shown))


MINIMAL = {"module": "/m.so", "pin_file": "/pin"}
CHOICE = "token: must have exactly one of uri, token_label, token_serial and slot"
HEX = "keys.ids: must be CKA_IDs as `keys list` shows them, 1 to 255 bytes in hex, "
NAMELESS = "token.uri: must select a token: "
PIN_VALUE = (
    "token.uri: must not contain a PIN (pin-value); name the PIN file in pin-source"
)
TWICE = with_(uri(WHOLE, **MINIMAL) | {"keys": {"label": "k", "ids": ["0a"]}})
FAULTS = {
    "uri and label": (
        with_(uri("pkcs11:token=t", **MINIMAL | {"token_label": "t"})),
        [f"{CHOICE}; found uri and token_label"],
    ),
    "said twice": (
        TWICE,
        [
            f"token.module: {BOTH} (module-path)",
            f"token.pin_file: {BOTH} (pin-source)",
            f"keys.label: {BOTH} (object)",
            f"keys.ids: {BOTH} (id)",
        ],
    ),
    "no token": (
        with_(uri("pkcs11:object=k", **MINIMAL)),
        [NAMELESS + "token, serial, manufacturer, model or slot-id"],
    ),
    "no module, no PIN": (
        with_(uri("pkcs11:token=t")),
        [
            "token: must have pin_file, unless login is none",
            "token.module: is required",
        ],
    ),
    "PIN": (with_(uri(f"pkcs11:token=t?pin-value={CANARY}")), [PIN_VALUE]),
    "number": (
        with_(uri(5, **MINIMAL)),
        ["token.uri: must be text; quote numbers, yes and no"],
    ),
    "no label": (
        with_({"keys.label": None}),
        ["keys.label: must not be null, unless ids lists the keys"],
    ),
    "number as id": (with_({"keys.ids": ["0a", 10]}), [HEX + "each in quotes"]),
    "half a byte": (with_({"keys.ids": ["0a0"]}), [HEX + "each in quotes"]),
    "list as id": (with_({"keys.ids": [["0a"]]}), [HEX + "each in quotes"]),
    "id twice": (
        with_({"keys.ids": ["0a", "0A"]}),
        ["keys.ids: must not list a CKA_ID twice"],
    ),
    "text as ids": (
        with_({"keys.ids": "0a"}),
        ["keys.ids: must be a list of at most 64 CKA_IDs"],
    ),
    "many ids": (
        with_({"keys.ids": [f"{n:02x}" for n in range(65)]}),
        ["keys.ids: must be a list of at most 64 CKA_IDs"],
    ),
    "mechanism": (
        with_({"keys.mechanism": "aes-ctr"}),
        ["keys.mechanism: must be auto, aes-gcm or aes-cbc-hmac-sha256"],
    ),
    "gcm_iv": (
        with_({"keys.gcm_iv": "random"}),
        ["keys.gcm_iv: must be auto, caller, token or appended"],
    ),
}


@pytest.mark.parametrize(("text", "faults"), FAULTS.values(), ids=FAULTS.keys())
def test_faults(text, faults):
    """Each kind of fault is reported with its message and path."""
    told = [re.sub(r" \(line [0-9]+\)$", "", fault) for fault in faults_of(text)]

    assert faults == told


def test_faults_have_lines():
    """A fault gives the line of the URI, or of the key that repeats a setting."""
    text = with_(uri(WHOLE, **MINIMAL))
    [control] = faults_of(with_(uri("pkcs11:token=t%0a", **MINIMAL)))

    assert control.endswith("(line 3)")
    assert ["(line 4)", "(line 5)"] == [fault[-8:] for fault in faults_of(text)]


@pytest.mark.parametrize("keys", [None, [], "x", {"label": 5}, {"ids": CANARY}])
@pytest.mark.parametrize("token", [None, [], {"uri": WHOLE}, {"uri": [WHOLE]}])
def test_any_shape_is_answered_with_faults(token, keys):
    """Data of any shape around the URI is answered with faults, not with a crash."""
    told = faults_of(with_({"token": token, "keys": keys}))

    assert CANARY not in str(told)
