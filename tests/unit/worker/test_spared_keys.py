"""Listing and checking keys without the use of a key, on a real token."""

from __future__ import annotations

from functools import partial

import pytest

from hsm_kms.ipc.messages import CheckKey, Done, Encrypted, FindKeys
from hsm_kms.ipc.values import Cipher, Identify
from hsm_kms.keys.listing import list_keys
from tests.harness.administrator import Destroy, Generate, change
from tests.harness.one_worker import ask, canary, only_key
from tests.harness.token_keys import LABEL


@pytest.fixture
async def counted(make, shim):
    """A worker on the shim."""
    async with make(shim.env, module=str(shim.module)) as worker:
        yield worker


async def listed(worker, identify, label=LABEL):
    """Return the keys with their fingerprints."""
    request = FindKeys(label=label, identify=identify)
    return [
        (each.ref, each.fingerprint)
        for each in await list_keys(partial(ask, worker), request)
    ]


def check(key):
    """Return the request to show a key."""
    return CheckKey(ref=key.ref, fingerprint=key.fingerprint, cipher=Cipher.GCM)


async def test_identified_once(counted, shim):
    """A session computes the fingerprint on a handle once, if that is asked for."""
    whole = await listed(counted, Identify.ALWAYS)
    used = shim.calls("C_EncryptInit")
    assert whole == await listed(counted, Identify.ONCE)
    assert [] == await listed(counted, Identify.ONCE, "another label")
    assert whole == await listed(counted, Identify.ONCE)
    assert [(ref, None) for ref, _ in whole] == await listed(counted, Identify.NEVER)
    assert used == shim.calls("C_EncryptInit")

    assert whole == await listed(counted, Identify.ALWAYS)
    assert used < shim.calls("C_EncryptInit")


async def test_check(counted, shim):
    """A session shows a key that it has identified, and does not use it."""
    key = await only_key(counted)
    used = shim.calls("C_EncryptInit")

    assert Done() == await ask(counted, check(key))
    assert used == shim.calls("C_EncryptInit")
    assert isinstance(await ask(counted, canary(key)), Encrypted)


async def test_another_key_under_the_names(counted, hsm):
    """A key that has taken the names of another is found out, by listing and check."""
    key = await only_key(counted)
    change(hsm, Destroy(key.ref))
    assert "no-key" == (await ask(counted, check(key))).cause
    change(hsm, Generate(key.ref))

    assert "other-key" == (await ask(counted, check(key))).cause
    ((ref, fingerprint),) = await listed(counted, Identify.ONCE)
    assert (key.ref, True) == (ref, key.fingerprint != fingerprint)
