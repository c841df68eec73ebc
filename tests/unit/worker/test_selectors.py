"""Selecting one token and its keys, on a SoftHSM with similar tokens."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hsm_kms.cli import cli
from tests.harness.softhsm import PIN, SoftHsm, softhsm_module

TWIN = "twin"
MODULE = softhsm_module()


def keygen(hsm, slot, label, cka_id, *more):
    """An AES-256 key on one of several tokens."""
    hsm.run(
        *("pkcs11-tool", "--module", MODULE, "--slot", str(slot)),
        *("--login", "--pin", PIN, "--keygen", "--key-type", "AES:32"),
        *("--label", label, "--id", cka_id, "--sensitive", *more),
    )


@pytest.fixture(scope="session")
def tokens(session_directory):
    """Two tokens with one label, a third, and SoftHSM's blank one."""
    hsm = SoftHsm(session_directory / "twins")
    for label in [TWIN, TWIN, "other"]:
        hsm.init_token(label)
    command = ["token", "list", "--module", MODULE, "-o", "json"]
    listed = CliRunner(env=hsm.env).invoke(cli, command)
    rows = [SimpleNamespace(**row) for row in json.loads(listed.stdout)]
    first, second = (row for row in rows if row.label == TWIN)
    [other] = (row for row in rows if row.label == "other")
    keygen(hsm, first.slot, "k8s-kek", "0a", "--private")
    keygen(hsm, first.slot, "k8s-kek", "0b", "--private")
    keygen(hsm, first.slot, "elsewhere", "0b", "--private")
    keygen(hsm, first.slot, "elsewhere", "0c", "--private")
    keygen(hsm, second.slot, "k8s-kek", "02", "--private")
    return SimpleNamespace(hsm=hsm, first=first, second=second, other=other)


@pytest.fixture
def listing(make_plugin, tokens):
    """The CKA_IDs that `keys list` shows under a `token` and a `keys` section."""

    def run(token, **keys):
        plugin = make_plugin(tokens.hsm)
        del plugin.config["token"]["token_label"]
        if "module-path" in token.get("uri", ""):
            del plugin.config["token"]["module"]
        plugin.config["token"] |= token
        plugin.config["keys"] = keys
        plugin.write_config()
        arguments = ["keys", "list", "-o", "json", "--config", plugin.config_file]
        ended = CliRunner().invoke(cli, list(map(str, arguments)))
        if ended.exit_code:
            return ended.exception.sentence
        return [f"{key['label']} {key['cka_id']}" for key in json.loads(ended.stdout)]

    return run


def row(token):
    return f"label {token.label!r} serial {token.serial!r} slot {token.slot}"


SECOND = ["k8s-kek 02"]


def test_one_label_two_tokens(tokens, listing):
    """Several matching tokens are an error that lists how they differ."""
    told = listing({"token_label": TWIN})

    assert f"2 tokens match token_label '{TWIN}': " in told
    assert row(tokens.first) in told
    assert row(tokens.second) in told
    assert row(tokens.other) not in told
    assert "select by token_serial" in told


def test_no_token_matches(tokens, listing):
    """A selector without a match is an error that lists all tokens."""
    told = listing({"token_label": "absent"})

    assert "no token matches token_label 'absent'; seen: " in told
    for token in [tokens.first, tokens.second, tokens.other]:
        assert row(token) in told


def test_serial_and_slot(tokens, listing):
    """Serial or slot alone selects one of two twins, also in a URI."""
    second = tokens.second

    assert SECOND == listing({"token_serial": second.serial})
    assert SECOND == listing({"slot": second.slot})
    assert SECOND == listing({"uri": f"pkcs11:serial={second.serial}"})
    assert SECOND == listing({"uri": f"pkcs11:slot-id={second.slot}"})


def test_all_attributes_must_match(tokens, listing):
    """Every attribute of a URI must match the token."""
    second = f"pkcs11:token={TWIN};serial={tokens.second.serial}"
    same = f"{second};manufacturer=SoftHSM%20project;model=SoftHSM%20v2"

    assert SECOND == listing({"uri": same})
    for wrong in [
        f"{second};model=SoftHSM%20v3",
        f"{second};manufacturer=other",
        f"{second};slot-id={tokens.first.slot}",
        f"pkcs11:token=other;serial={tokens.second.serial}",
    ]:
        assert "no token matches" in listing({"uri": wrong})


def test_blank_tokens_do_not_answer_to_their_make(listing):
    """A blank token is not chosen by attributes that all tokens share."""
    told = listing({"uri": "pkcs11:model=SoftHSM%20v2"})

    assert "3 tokens match model 'SoftHSM v2': " in told


def test_library_attributes(tokens, listing):
    """A module that is not the one in the URI is refused."""
    token = f"pkcs11:slot-id={tokens.second.slot}"

    assert SECOND == listing({"uri": f"{token};library-manufacturer=SoftHSM"})
    assert "the module's library-version is " in listing(
        {"uri": f"{token};library-version=99"}
    )


def test_whole_uri(tokens, listing, pin_file):
    """One URI names module, token, PIN file and key."""
    token = f"token={TWIN};serial={tokens.second.serial}"
    key = f"object=k8s-kek;id=%02;type=secret-key?pin-source=file:{pin_file}"

    assert SECOND == listing(
        {"uri": f"pkcs11:{token};{key}&module-path={MODULE}", "pin_file": None}
    )
    assert SECOND == listing(
        {"uri": f"pkcs11:module-path={MODULE};{token};{key}", "pin_file": None}
    )


def test_keys_by_label_and_id(tokens, listing):
    """Label and CKA_IDs select keys, each alone and both together."""
    token = {"slot": tokens.first.slot}
    both = ["0b", "0c"]

    assert ["k8s-kek 0a", "k8s-kek 0b"] == sorted(listing(token))
    assert ["k8s-kek 0b"] == listing(token, ids=both)
    assert ["elsewhere 0b", "elsewhere 0c"] == sorted(
        listing(token, ids=both, label="elsewhere")
    )
    assert ["elsewhere 0b", "elsewhere 0c", "k8s-kek 0b"] == sorted(
        listing(token, ids=both, label=None)
    )


def test_key_by_uri(tokens, listing):
    """A CKA_ID alone finds the key under any label."""
    token = f"pkcs11:slot-id={tokens.first.slot}"

    assert ["elsewhere 0c"] == listing({"uri": f"{token};id=%0c"})
    assert ["k8s-kek 0b"] == listing({"uri": f"{token};id=%0b;object=k8s-kek"})
    assert [] == listing({"uri": f"{token};id=%0c;object=k8s-kek"})


def test_listed_key_that_is_absent(make_plugin, hsm):
    """If no key matches, the error names the configuration."""
    plugin = make_plugin(hsm, keys={"ids": ["ffff"]})
    ended = plugin.cli("check")

    assert 1 == ended.returncode
    assert "no AES key labelled 'k8s-kek' and in keys.ids is on the token" in (
        ended.stdout
    )
    assert "hint: correct keys.label or keys.ids\n" in ended.stdout


def test_generate_would_miss_the_list(make_plugin, hsm):
    """`keys generate` refuses a list of CKA_IDs, which a new key is not in."""
    plugin = make_plugin(hsm, keys={"ids": ["ffff"]})
    ended = plugin.cli("keys", "generate", "--another")

    assert 1 == ended.returncode
    assert "keys.ids lists the CKA_IDs in use" in ended.stderr
    assert 1 == len(json.loads(plugin_without_ids(plugin).stdout))


def plugin_without_ids(plugin):
    plugin.config["keys"] = {}
    plugin.write_config()
    return plugin.cli("keys", "list", "-o", "json")


@pytest.mark.parametrize("label", ["", "k8s-kek"], ids=["no label", "label"])
def test_served_by_id(make_plugin, empty_hsm, label):
    """The server finds a key by its CKA_ID alone, also one without a label."""
    arguments = ["--label", label] if label else []
    empty_hsm.pkcs11_tool(
        *("--keygen", "--key-type", "AES:32", "--id", "0aff"),
        *("--sensitive", "--private", *arguments),
    )
    empty_hsm.pkcs11_tool(
        *("--keygen", "--key-type", "AES:32", "--id", "0afe", "--label", "k8s-kek"),
        *("--sensitive", "--private"),
    )
    plugin = make_plugin(empty_hsm, keys={"label": None, "ids": ["0AFF"]}).start()
    plugin.wait_healthz("ok")
    sealed = plugin.encrypt(b"seed")

    assert b"seed" == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_label_that_is_no_text(make_plugin, hsm):
    """A key whose label is not UTF-8 is listed with what to do; others still work."""
    [key] = json.loads(make_plugin(hsm).cli("keys", "list", "-o", "json").stdout)
    hsm.pkcs11_tool(
        *("--keygen", "--key-type", "AES:32", "--id", "0aff", "--label", "\udcff"),
        *("--sensitive", "--private"),
    )
    both = {"label": None, "ids": ["0aff", key["cka_id"]]}
    listed = make_plugin(hsm, keys=both).cli("keys", "list", "-o", "json")

    odd, other = json.loads(listed.stdout)
    assert key == other
    assert ("refused", None, "\\xff") == (odd["state"], odd["key_id"], odd["label"])
    assert "its CKA_LABEL is not UTF-8; give it a CKA_LABEL" in odd["reason"]


@pytest.mark.parametrize("read_write", [False, True], ids=["read-only", "read-write"])
def test_public_key_without_login(make_plugin, empty_hsm, read_write):
    """`login: none` needs no PIN for a key that is not private."""
    empty_hsm.pkcs11_tool(
        *("--keygen", "--key-type", "AES:32", "--id", "01"),
        *("--label", "k8s-kek", "--sensitive"),
    )
    plugin = make_plugin(
        empty_hsm, token={"login": "none", "pin_file": None, "read_write": read_write}
    ).start()
    plugin.wait_healthz("ok")
    sealed = plugin.encrypt(b"seed")
    v1 = plugin.v1_encrypt(b"seed")

    assert b"seed" == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    assert b"seed" == plugin.v1_decrypt(v1)
    assert 0 == plugin.cli("check").returncode


def test_generate_without_login(make_plugin, empty_hsm):
    """`keys generate` makes no private key if the configuration does not log in."""
    plugin = make_plugin(empty_hsm, token={"login": "none", "pin_file": None})
    made = plugin.cli("keys", "generate")
    checked = plugin.cli("check")

    assert 0 == made.returncode, made.stderr
    assert 0 == checked.returncode, checked.stdout


def test_read_write_with_login(make_plugin, hsm):
    """A server whose sessions are all read-write encrypts and decrypts."""
    plugin = make_plugin(hsm, token={"read_write": True}).start()
    plugin.wait_healthz("ok")
    sealed = plugin.encrypt(b"seed")

    assert b"seed" == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_private_key_without_login(make_plugin, hsm):
    """A session without a login does not see a private key."""
    ended = make_plugin(hsm, token={"login": "none", "pin_file": None}).cli("check")

    assert 1 == ended.returncode
    assert "no AES key labelled 'k8s-kek' is on the token" in ended.stdout
