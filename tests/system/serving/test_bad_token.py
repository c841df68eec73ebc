"""With an unusable module, token or key `serve` keeps running; `check` says why."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.harness.plugin import code_of
from tests.harness.softhsm import softhsm_module
from tests.harness.token_keys import LABEL, make_key
from tests.harness.wait import wait_for

NOT_READY = "UNAVAILABLE: the token is not ready: see hsm-kms check"
NOT_THERE = (
    "the PKCS#11 module or the token was not found; check whether the HSM and its "
    "client are running, and run hsm-kms check on the node"
)
NO_KEY = (
    "no key with the configured label is on the token; create one with "
    "hsm-kms keys generate"
)
SEVERAL = "several keys have the configured label; set keys.current to one of them"
UNSUITABLE = "the current key violates the key policy; run hsm-kms check on the node"
POLICY = "make a key with `hsm-kms keys generate`, or set keys.policy: warn"
NAME_ONE = "make a key with `hsm-kms keys generate`, and name it in keys.current"
OFTEN = (
    "correct token.module: the HSM's client software brings the module, often below "
    "/usr/lib or /opt"
)
LIBRARIES = "check token.module and the libraries it needs"


def no_module(hsm, directory):
    return {"module": str(directory / "none.so")}


def text_file(hsm, directory):
    path = directory / "text.so"
    path.write_text("# no module\n" * 100)
    return {"module": str(path)}


def wrong_label(hsm, directory):
    return {"token_label": "another"}


def no_key(hsm, directory):
    return {}


def two_keys(hsm, directory):
    make_key(hsm, b"a")
    make_key(hsm, b"b")
    return {}


def cut_short(hsm, directory):
    hsm.import_aes(b"7 bytes", label=LABEL, cka_id=b"cut")
    return {}


def key(**template):
    def arrange(hsm, directory):
        make_key(hsm, **template)
        return {}

    return arrange


# name: how it is arranged · Status · what the log and `check` say · `check`'s hint
CASES = {
    "module missing": (
        no_module,
        NOT_THERE,
        "none.so: ",
        OFTEN,
    ),
    "text file as module": (
        text_file,
        NOT_THERE,
        "text.so: invalid ELF header",
        LIBRARIES,
    ),
    "wrong token label": (
        wrong_label,
        NOT_THERE,
        "no token matches token_label 'another'; seen: label '",
        "list the tokens with `hsm-kms token list`, then correct the token selector",
    ),
    "no key": (
        no_key,
        NO_KEY,
        f"no AES key labelled {LABEL!r} is on the token",
        "make one with `hsm-kms keys generate`",
    ),
    "two keys": (
        two_keys,
        SEVERAL,
        f"2 keys are labelled {LABEL!r}: ",
        "name the one to encrypt with in keys.current",
    ),
    "extractable": (
        key(EXTRACTABLE=True),
        UNSUITABLE,
        "breaks the policy: CKA_EXTRACTABLE is True",
        POLICY,
    ),
    "AES-128": (
        key(bits=128),
        UNSUITABLE,
        "breaks the policy: CKA_VALUE_LEN is 16 bytes, not 32 bytes",
        POLICY,
    ),
    "without CKA_ENCRYPT": (
        key(usage=("DECRYPT",)),
        UNSUITABLE,
        "with CKA_ID 6f6464 cannot be identified: CKA_ENCRYPT is False",
        NAME_ONE,
    ),
    "imported, cut short": (
        cut_short,
        UNSUITABLE,
        "cannot be identified: CKA_VALUE_LEN is 7 bytes, not 32 bytes",
        NAME_ONE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_token(make_plugin, empty_hsm, directory, name):
    """Status has a fixed message, log and `check` the cause; the server stays up."""
    arrange, sentence, detail, hint = CASES[name]
    plugin = make_plugin(empty_hsm, token=arrange(empty_hsm, directory)).start()
    check = plugin.cli("check")
    wait_for(lambda: [e for e in plugin.events("health") if sentence == e["healthz"]])

    assert any(detail in event["detail"] for event in plugin.events("health"))
    wait_for(
        lambda: status_of(plugin) == (sentence if announced(plugin) else NOT_READY)
    )
    assert "OK" != code_of(lambda: plugin.encrypt(b"d" * 32))
    assert plugin.process.poll() is None
    assert (1, "") == (check.returncode, check.stderr)
    assert_failure(check.stdout, detail, plugin.hint(hint))


def status_of(plugin):
    """Return healthz, or code and message if Status fails."""
    try:
        return plugin.status().healthz
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def announced(plugin):
    """Return True if the server has a key_id, so that Status can answer."""
    return bool(plugin.events("health")[-1]["key_id"])


def assert_failure(stdout, detail, hint):
    """Assert that one line with ✗ names the fault and the next one the cure."""
    lines = stdout.splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith("✗"))
    assert detail in lines[at]
    assert f"  hint: {hint}" == lines[at + 1]


def test_policy_warn(make_plugin, empty_hsm):
    """With `policy: warn` a non-compliant key encrypts, and `check` warns of it."""
    make_key(empty_hsm, EXTRACTABLE=True)
    plugin = make_plugin(empty_hsm, keys={"policy": "warn"}).start()
    check = plugin.cli("check")
    plugin.wait_healthz("ok")

    assert 0 == check.returncode
    assert "! policy: CKA_EXTRACTABLE is True" in check.stdout


def test_forbidden_key_decrypts(make_plugin, empty_hsm):
    """A key that the policy forbids for Encrypt still decrypts its records."""
    make_key(empty_hsm, EXTRACTABLE=True)
    lax = make_plugin(empty_hsm, keys={"policy": "warn"}).start()
    lax.wait_healthz("ok")
    sealed = lax.encrypt(b"d" * 32)
    lax.stop()
    strict = make_plugin(empty_hsm).start()
    strict.wait_healthz(UNSUITABLE)

    assert b"d" * 32 == strict.decrypt(sealed.ciphertext, sealed.key_id)
    assert "FAILED_PRECONDITION" == code_of(lambda: strict.encrypt(b"d"))


def test_key_made_while_serving(make_plugin, empty_hsm):
    """A running server finds the key that `keys generate` makes."""
    plugin = make_plugin(empty_hsm).start()
    wait_for(lambda: [e for e in plugin.events("health") if NO_KEY == e["healthz"]])
    generated = plugin.cli("keys", "generate")
    plugin.wait_healthz("ok")

    assert 0 == generated.returncode
    assert plugin.status().key_id in generated.stdout


def test_two_keys_and_current(make_plugin, empty_hsm):
    """The key that `keys.current` names encrypts; the other one decrypts."""
    two_keys(empty_hsm, None)
    named = key_ids(make_plugin(empty_hsm))
    plugins = [make_plugin(empty_hsm, keys={"current": key_id}) for key_id in named]
    for plugin in plugins:
        plugin.start()
    for plugin in plugins:
        plugin.wait_healthz("ok")
    first, second = (plugin.encrypt(b"d" * 32) for plugin in plugins)

    assert named == [first.key_id, second.key_id]
    assert b"d" * 32 == plugins[0].decrypt(second.ciphertext, second.key_id)
    assert b"d" * 32 == plugins[1].decrypt(first.ciphertext, first.key_id)


def key_ids(plugin):
    """Return the key_ids that `keys list` shows."""
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)
    return [key["key_id"] for key in listed if key["key_id"]]


def test_unnamed_beside_named(make_plugin, hsm):
    """A key that cannot be identified does not keep another one from serving."""
    make_key(hsm, usage=("DECRYPT",))
    plugin = make_plugin(hsm).start()
    plugin.wait_healthz("ok")

    assert [plugin.encrypt(b"d").key_id] == key_ids(plugin)
    assert 0 == plugin.cli("check").returncode


def test_unnamed_alone(make_plugin, empty_hsm):
    """`check` says why the only key cannot be identified."""
    make_key(empty_hsm, usage=("DECRYPT",))
    refused = make_plugin(empty_hsm).cli("check")

    assert 1 == refused.returncode
    assert "CKA_ENCRYPT is False" in refused.stdout


def test_imported_key(make_plugin, empty_hsm):
    """An imported key that is the only one at first start serves, with a warning."""
    empty_hsm.import_aes(b"k" * 32, label=LABEL, cka_id=b"imp")
    plugin = make_plugin(empty_hsm).start()
    check = plugin.cli("check")
    plugin.wait_healthz("ok")
    warning = "the current key was imported, or could once be read from the token"

    assert "warning" == plugin.events(warning)[0]["level"]
    assert 0 == check.returncode
    assert "! the key was imported, or could once be read" in check.stdout


def test_module_appears(make_plugin, hsm, directory):
    """A module that is installed later is loaded without a restart."""
    module = directory / "later.so"
    plugin = make_plugin(hsm, token={"module": str(module)}).start()
    wait_for(lambda: NOT_THERE in plugin.log())
    module.symlink_to(softhsm_module())

    plugin.wait_healthz("ok")
