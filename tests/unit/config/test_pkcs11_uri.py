"""Test which PKCS#11 URIs are accepted and refused, without quotations."""

import re
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hsm_kms.config.pkcs11_uri import MAX_URI_CHARACTERS, Pkcs11Uri, parse

CANARY = "Xq7hunterZ2"


URIS = {
    "pkcs11:": {},
    "PKCS11:token=k8s": {"token": "k8s"},
    "pkcs11:model=SoftHSM%20v2;serial=5c3d0b1b4c6d0d0a;token=My%20token%201": {
        "model": "SoftHSM v2",
        "serial": "5c3d0b1b4c6d0d0a",
        "token": "My token 1",
    },
    "pkcs11:object=k;id=%10%00%ff;type=secret-key?module-path=/usr/lib/x.so": {
        "object": "k",
        "id": b"\x10\x00\xff",
        "type": "secret-key",
        "module_path": "/usr/lib/x.so",
    },
    "pkcs11:module-path=/x.so;token=t?pin-source=/run/pass.txt": {
        "module_path": "/x.so",
        "token": "t",
        "pin_source": "/run/pass.txt",
    },
    "pkcs11:slot-id=0": {"slot_id": 0},
    "pkcs11:slot-id=9223372036854775807": {"slot_id": 2**63 - 1},
    "pkcs11:library-version=2": {"library_version": "2.0"},
    "pkcs11:library-version=2.06": {"library_version": "2.6"},
    "pkcs11:object=a=b&c": {"object": "a=b&c"},
    "pkcs11:token=%E2%9C%93": {"token": "✓"},
    "pkcs11:?pin-source=file:/etc/token_pin": {"pin_source": "/etc/token_pin"},
    "pkcs11:?pin-source=file:///a%2520b": {"pin_source": "/a b"},
    "pkcs11:?module-path=/a%20b%2Fc": {"module_path": "/a b/c"},
}


@pytest.mark.parametrize(("text", "parts"), URIS.items(), ids=URIS.keys())
def test_uris(text, parts):
    """Each attribute of a valid URI is decoded according to its type."""
    assert Pkcs11Uri(**parts) == parse(text)


REFUSED = {
    "": "must begin with pkcs11:",
    "pkcs12:token=t": "must begin with pkcs11:",
    " pkcs11:token=t": "must begin with pkcs11:",
    "pkcs11:token=" + "t" * MAX_URI_CHARACTERS: "at most 4096 characters",
    f"pkcs11:token=t?pin-value={CANARY}": "must not contain a PIN (pin-value)",
    f"pkcs11:pin-value={CANARY}": "must not contain a PIN (pin-value)",
    f"pkcs11:token=t?module-name={CANARY}": "must not have module-name",
    f"pkcs11:slot-description={CANARY}": "not a slot (slot-description)",
    f"pkcs11:slot-manufacturer={CANARY}": "not a slot (slot-manufacturer)",
    f"pkcs11:{CANARY}=1": "attributes that hsm-kms does not know",
    f"pkcs11:x-{CANARY}=1": "attributes that hsm-kms does not know",
    f"pkcs11:token=t?x-{CANARY}=1": "attributes that hsm-kms does not know",
    "pkcs11:TOKEN=t": "attributes that hsm-kms does not know",
    f"pkcs11:{CANARY}": "of the form name=value",
    "pkcs11:token=t;": "of the form name=value",
    "pkcs11:;token=t": "of the form name=value",
    "pkcs11:token=t?module-path=/x&": "of the form name=value",
    "pkcs11:token=a;token=b": "must not have token twice",
    "pkcs11:module-path=/a?module-path=/a": "must not have module-path twice",
    "pkcs11:pin-source=/a": "must not have pin-source in its path",
    "pkcs11:?token=t": "must not have token in its query",
    "pkcs11:token=": "token of 1 to 32 bytes",
    "pkcs11:token=" + "t" * 33: "token of 1 to 32 bytes",
    "pkcs11:token=" + "%c3%bc" * 17: "token of 1 to 32 bytes",
    "pkcs11:serial=" + "1" * 17: "serial of 1 to 16 bytes",
    "pkcs11:object=" + "k" * 256: "object of 1 to 255 bytes",
    "pkcs11:token=a b": "must have token percent-encoded",
    "pkcs11:token=a/b": "must have token percent-encoded",
    "pkcs11:token=a#b": "must have token percent-encoded",
    "pkcs11:token=ü": "must have token percent-encoded",
    "pkcs11:token=t\n": "must have token percent-encoded",
    "pkcs11:token=%": "must have token percent-encoded",
    "pkcs11:token=%4": "must have token percent-encoded",
    "pkcs11:token=%%34": "must have token percent-encoded",
    "pkcs11:token=%g0": "two hex digits after each % in token",
    "pkcs11:token=%+1": "two hex digits after each % in token",
    "pkcs11:token=%ff": "token in UTF-8",
    "pkcs11:token=%ed%a0%80": "token in UTF-8",
    "pkcs11:token=a%00b": "control characters in token",
    "pkcs11:token=%7f": "control characters in token",
    "pkcs11:id=": "each byte of id percent-encoded",
    "pkcs11:id=1000": "each byte of id percent-encoded",
    "pkcs11:id=%10a": "each byte of id percent-encoded",
    "pkcs11:id=" + "%00" * 256: "id of 1 to 255 bytes",
    "pkcs11:slot-id=": "whole number for slot-id",
    "pkcs11:slot-id=-1": "whole number for slot-id",
    "pkcs11:slot-id=%31": "whole number for slot-id",
    "pkcs11:slot-id=9223372036854775808": "whole number for slot-id",
    "pkcs11:type=private": "type=secret-key",
    "pkcs11:library-version=2.6.1": "library-version in the form",
    "pkcs11:module-path=x.so": "absolute path for module-path",
    "pkcs11:?pin-source=pin": "absolute path for pin-source",
    "pkcs11:?pin-source=%7C/usr/bin/pinomatic": "a command for pin-source",
    "pkcs11:?pin-source=|/usr/bin/pinomatic": "a command for pin-source",
    "pkcs11:?pin-source=file://host/pin": "a host in pin-source",
    "pkcs11:?pin-source=file://localhost/pin": "a host in pin-source",
    "pkcs11:?pin-source=file:pin": "absolute path for pin-source",
    "pkcs11:?pin-source=file:": "pin-source of 1 to 1024 bytes",
    "pkcs11:?pin-source=file:/pin?x": "plain path or a file: URI for pin-source",
    "pkcs11:?pin-source=file:/%C3%BC": "plain path or a file: URI for pin-source",
    "pkcs11:?pin-source=file:/a%20b": "plain path or a file: URI for pin-source",
    "pkcs11:?pin-source=file:/%2500": "control characters in pin-source",
    "pkcs11:?pin-source=https://host/pin": "absolute path for pin-source",
    "pkcs11:?pin-source=env:PIN": "absolute path for pin-source",
}


def test_refusals():
    """Each refusal has its own message, which quotes no value and no unknown name."""
    for text, sentence in REFUSED.items():
        with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
            parse(text)
        assert CANARY not in str(caught.value), text
        assert str(caught.value).startswith("must "), text


ATTRIBUTES = [
    *("token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"),
    *("library-manufacturer", "library-description", "library-version"),
    *("module-path", "pin-source", "pin-value", "module-name", "x-vendor", CANARY),
]
VALUES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "%", "%00", "%ff", "%zz", "file:", "file:///", "|x", "/a", CANARY]
    ),
    st.binary(max_size=8).map(lambda data: "".join(f"%{byte:02x}" for byte in data)),
)
ALMOST = st.lists(
    st.tuples(
        st.sampled_from(["", ";", "&", "?"]), st.sampled_from(ATTRIBUTES), VALUES
    ),
    max_size=6,
).map(lambda parts: "pkcs11:" + "".join(f"{s}{n}={v}" for s, n, v in parts))


@given(st.one_of(st.text(), st.text().map("pkcs11:".__add__), ALMOST))
@example("pkcs11:?pin-source=file:/%ff")
@example("pkcs11:id=%\u0661\u0661")
@example("pkcs11:slot-id=\u0661")
def test_no_text_crashes_the_parser(text):
    """Any text gives a URI, or a ValueError that quotes nothing."""
    told = ""
    try:
        parse(text)
    except UnicodeError:
        raise
    except ValueError as error:
        told = str(error)

    assert CANARY not in told


def words(most):
    one = st.characters(exclude_categories=["Cs", "Cc"])
    return st.text(one, min_size=1, max_size=most).filter(
        lambda text: len(text.encode()) <= most
    )


PATHS = words(60).map("/".__add__)
ANY_URI = st.builds(
    Pkcs11Uri,
    token=st.none() | words(32),
    serial=st.none() | words(16),
    manufacturer=st.none() | words(32),
    model=st.none() | words(16),
    slot_id=st.none() | st.integers(0, 2**63 - 1),
    library_manufacturer=st.none() | words(32),
    library_description=st.none() | words(32),
    library_version=st.none() | st.just("2.6"),
    object=st.none() | words(255),
    id=st.none() | st.binary(min_size=1, max_size=255),
    type=st.none() | st.just("secret-key"),
    module_path=st.none() | PATHS,
    pin_source=st.none() | PATHS,
)
IN_QUERY = {"module_path", "pin_source"}


def written(uri, safe, *, as_file):
    """Return a URI as text: the inverse of `parse`, written independently."""
    parts = {True: [], False: []}
    for name in Pkcs11Uri.__dataclass_fields__:
        value = getattr(uri, name)
        if value is None:
            continue
        if isinstance(value, bytes):
            text = "".join(f"%{byte:02X}" for byte in value)
        elif name == "pin_source" and as_file:
            text = quote("file://" + quote(value), safe="/:")
        else:
            text = quote(str(value), safe=safe + "/" * (name in IN_QUERY))
        parts[name in IN_QUERY].append(f"{name.replace('_', '-')}={text}")
    return f"pkcs11:{';'.join(parts[False])}" + (
        f"?{'&'.join(parts[True])}" if parts[True] else ""
    )


@given(ANY_URI, st.sampled_from(["", ":[]@!$'()*+,="]), st.booleans())
def test_round_trip(uri, safe, as_file):
    """A URI that is encoded as RFC 7512 says parses to the same attributes."""
    text = written(uri, safe, as_file=as_file)
    assume(len(text) <= MAX_URI_CHARACTERS)

    assert uri == parse(text)


def test_what_names_a_token():
    """Key, module and PIN attributes do not select a token."""
    assert parse("pkcs11:model=x").names_a_token
    assert parse("pkcs11:slot-id=0").names_a_token
    assert not parse("pkcs11:object=k;library-version=2?module-path=/x").names_a_token
