"""Conformance, "Status", item 9, where Encrypt works without the token."""

from __future__ import annotations

import grpc

from hsm_kms.wrapping.record import Kind, Record
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.conformance.clients import DEK, take_token
from tests.system.conformance.inside import health, start_well
from tests.system.conformance.wrappings import apis

NO_KEY = "UNAVAILABLE", "the token has no usable key: see hsm-kms check"
SENTENCE = "writes continue with a local KEK"


def kind(sealed):
    """Return the kind of a record."""
    return Record.decode(sealed.ciphertext).header.kind


def opened(plugin, sealed):
    """Return the code of the Decrypt of a record."""
    return code_of(lambda: plugin.decrypt(sealed.ciphertext, sealed.key_id))


def test_9_software(mixed, hsm):
    """In `software` healthz stays ok in an outage until a request has failed."""
    cipher, sealed = mixed.v1_encrypt(DEK), [mixed.encrypt(DEK)]
    key_id = sealed[0].key_id
    take_token(mixed)
    wait_for(lambda: health(mixed) == "degraded")
    sealed.append(mixed.encrypt(DEK))
    ended = [opened(mixed, each) for each in sealed]
    unfelt = mixed.healthz()
    ended.append(code_of(lambda: mixed.v1_decrypt(cipher)))
    felt = mixed.healthz()
    sealed.append(mixed.encrypt(DEK))
    ended.append(opened(mixed, sealed[-1]))
    away = health(mixed)
    hsm.put_back()
    mixed.wait_healthz("ok")

    assert ["OK", "OK", "UNAVAILABLE", "OK"] == ended
    assert "ok" == unfelt
    assert felt.endswith(SENTENCE)
    assert "degraded" == away
    assert {(key_id, Kind.DEK_BY_LOCAL_KEK)} == {(s.key_id, kind(s)) for s in sealed}
    assert DEK == mixed.v1_decrypt(cipher)


def test_9_fallback(make_plugin, hsm):
    """In `fallback` Encrypt goes on in an outage; Status says what does not work."""
    plugin = start_well(make_plugin(hsm, apis=apis("fallback")))
    by_token = plugin.encrypt(DEK)
    take_token(plugin)
    refused, sealed = set(), [by_token]
    while kind(sealed[-1]) is Kind.DEK_BY_TOKEN or SENTENCE not in plugin.healthz():
        try:
            sealed.append(plugin.encrypt(DEK))
        except grpc.RpcError as error:
            refused.add((error.code().name, error.details()))
        opened(plugin, by_token)
    by_local = sealed[-1]
    ended = [opened(plugin, each) for each in (by_token, by_local)]
    hsm.put_back()
    plugin.wait_healthz("ok")

    # SoftHSM without its files first looks like an empty token, until a new process
    # finds none: nothing stands in for a key that is gone (docs/adr/0010).
    assert refused <= {NO_KEY}
    assert ["UNAVAILABLE", "OK"] == ended
    assert {by_token.key_id} == {each.key_id for each in sealed}
    assert Kind.DEK_BY_LOCAL_KEK == kind(by_local)
    assert Kind.DEK_BY_TOKEN == kind(by_token) == kind(plugin.encrypt(DEK))
    assert ["OK", "OK"] == [opened(plugin, each) for each in (by_token, by_local)]


def test_9_too_long(make_plugin, hsm):
    """After `max_offline` Encrypt fails; Decrypt by local KEKs in memory goes on."""
    plugin = make_plugin(hsm, apis=apis("software"), local_keys={"max_offline": "2s"})
    start_well(plugin)
    sealed = encrypted(plugin)
    take_token(plugin)
    wait_for(lambda: code_of(lambda: plugin.encrypt(DEK)) == "UNAVAILABLE")
    plugin.wait_healthz("hsm-kms check")
    away = health(plugin), plugin.status().key_id, opened(plugin, sealed)
    hsm.put_back()
    again = encrypted(plugin)

    assert ("failed", sealed.key_id, "OK") == away
    assert sealed.key_id == again.key_id


def encrypted(plugin):
    """Encrypt, as soon as that works."""
    sealed = []

    def works() -> bool:
        return "OK" == code_of(lambda: sealed.append(plugin.encrypt(DEK)))

    wait_for(works)
    return sealed[-1]
