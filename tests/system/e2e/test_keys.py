"""`keys retire` and `keys destroy` against what a real etcd holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.keys_rig import Keys, retired_long_ago, stored_value
from tests.system.e2e.secure_etcd import SecureEtcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def etcd(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[SecureEtcd]:
    """An etcd that wants client certificates."""
    running = SecureEtcd(binaries, new_folder())
    try:
        yield running
    finally:
        running.stop()


def test_only_what_nothing_needs(etcd, make_plugin, hsm):
    """A key cannot be retired while an object uses it; then it can be destroyed."""
    plugin = make_plugin(hsm, token={"shared": True})
    keys = Keys(plugin)
    (old,) = keys.states()
    plugin.start().wait_healthz("ok")
    etcd.ctl("put", "/registry/secrets/d/one", stdin=stored_value(plugin))
    etcd.put({f"/registry/pods/d/{n}": "k8s-in-clear" for n in range(1000)})
    plugin.stop()
    new = keys.generate("--another")
    keys.configure("keys", current=new)
    not_yet = keys.refusal("retire", old, "--yes", *etcd.options)
    plugin.start().wait_healthz("ok")
    retire = ("retire", old, "--yes", *etcd.options)
    destroy = ("destroy", old, "--confirm", old, "--backups-expired")
    pki = etcd.pki
    pem = "".join(each.read_text() for each in (pki.client, pki.client_key, pki.ca))
    from_stdin = ("--cacert", "-", "--cert", "-", "--key", "-")

    assert f"has not switched to {new} yet" in not_yet
    assert f"1 of 1001 objects in {etcd.endpoint} are stored under {old}" in (
        keys.refusal(*retire)
    )
    etcd.ctl("put", "/registry/secrets/d/one", stdin=stored_value(plugin))
    keys.json(*retire)
    assert "less than 24 hours ago" in keys.refusal(*destroy, *etcd.options)
    retired_long_ago(keys, old)
    destroyed = plugin.cli(
        *("keys", *destroy, "-o", "json", "--endpoints", etcd.endpoint, *from_stdin),
        stdin=pem,
    )
    assert (0, old, 1001) == (
        destroyed.returncode,
        *(json.loads(destroyed.stdout)[each] for each in ("key_id", "scanned")),
    )
    assert {new: "current"} == keys.states()
    assert ("ok", new) == (plugin.healthz(), plugin.status().key_id)
