"""Reading a real etcd: TLS, pages, and a real API server's values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hsm_kms.etcd.live import Access, Etcd
from hsm_kms.etcd.source import EtcdError
from tests.harness.etcd_server import make_certificates
from tests.system.e2e.secure_etcd import SecureEtcd, complaint, hsm_kms, scan
from tests.system.e2e.world import NAMES, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SMALL = {f"/registry/pods/n/{n:05}": "k8s-in-clear" for n in range(2000)}
LONG = {
    f"/registry/secrets/n/{n:05}": "k8s:enc:kms:v9:x:" + "y" * 900_000
    for n in range(20)
}
OBJECTS = SMALL | LONG
ELSEWHERE = {"/other/a": "1", "/registrz/a": "2"}


@pytest.fixture(scope="module")
def etcd(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[SecureEtcd]:
    """An etcd with some thousand objects, some of them long."""
    running = SecureEtcd(binaries, new_folder())
    try:
        running.put(OBJECTS | ELSEWHERE)
        yield running
    finally:
        running.stop()


def test_every_object_in_pages(etcd):
    """A scan counts every object, over all pages."""
    told = scan(*etcd.options)

    assert len(OBJECTS) == told["objects"]
    assert {("pods", len(SMALL)), ("secrets", len(LONG))} == {
        (row["resource"], row["objects"]) for row in told["rows"]
    }


def test_the_values_are_those_etcd_holds(etcd):
    """Keys and values, short and long, are read as they were put."""
    access = Access(cacert=etcd.pki.ca, cert=etcd.pki.client, key=etcd.pki.client_key)
    with Etcd([etcd.endpoint], access) as source:
        found = {item.key.decode(): item.value.decode() for item in source}

    assert found == OBJECTS


def test_the_variables_of_etcdctl(etcd):
    """The environment variables of etcdctl apply, with several endpoints too."""
    env = {
        "ETCDCTL_ENDPOINTS": f"https://127.0.0.1:1,https://{etcd.endpoint}",
        "ETCDCTL_CACERT": str(etcd.pki.ca),
        "ETCDCTL_CERT": str(etcd.pki.client),
        "ETCDCTL_KEY": str(etcd.pki.client_key),
    }

    assert len(OBJECTS) == scan(env=env)["objects"]


def test_what_etcdctl_prints(etcd, new_folder):
    """The output of etcdctl counts like etcd; incomplete output is refused."""
    path = new_folder() / "dump.json"
    path.write_bytes(etcd.ctl("get", "--prefix", "/", "-w", "json").stdout)
    live, dumped = scan(*etcd.options), scan("--from-json", path)
    path.write_bytes(
        etcd.ctl("get", "--prefix", "/", "--limit=50", "-w", "json").stdout
    )
    everything = json.loads(path.read_bytes())["count"]  # other tests add to it
    limited = complaint("--from-json", path)
    path.write_bytes(
        etcd.ctl("get", "--prefix", "/", "--keys-only", "-w", "json").stdout
    )
    keys_only = complaint("--from-json", path)

    assert live["rows"] == dumped["rows"]
    assert live["revision"] == dumped["revision"]
    assert everything >= len(OBJECTS | ELSEWHERE)
    assert f"has only 50 of {everything} objects" in limited
    assert "has keys but no values" in keys_only


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("no client", "it requires a client certificate\nhint: give an etcd client"),
        (
            "other client",
            "it rejects the client certificate\nhint: give an etcd client",
        ),
        ("other CA", "its certificate is not trusted: certificate"),
        ("no TLS", "it uses TLS\nhint: write https://"),
        (
            "nobody",
            "127.0.0.1:1: connection refused\nhint: see whether etcd runs there",
        ),
    ],
)
def test_no_way_in(wrong, words, etcd, new_folder):
    """Every failure to connect has a message and a hint."""
    pki, other = etcd.pki, make_certificates(new_folder() / "pki")
    ours = ["--cert", pki.client, "--key", pki.client_key]
    options = {
        "no client": ["--endpoints", etcd.endpoint, "--cacert", pki.ca],
        "other client": [
            *("--endpoints", etcd.endpoint, "--cacert", pki.ca),
            *("--cert", other.client, "--key", other.client_key),
        ],
        "other CA": ["--endpoints", etcd.endpoint, "--cacert", other.ca, *ours],
        "no TLS": ["--endpoints", f"http://{etcd.endpoint}"],
        "nobody": ["--endpoints", "127.0.0.1:1", "--cacert", pki.ca, *ours],
    }[wrong]

    assert words in complaint(*options)


def test_a_revision_compacted_while_it_is_read(etcd):
    """Reading stops if etcd compacts the revision meanwhile."""
    access = Access(cacert=etcd.pki.ca, cert=etcd.pki.client, key=etcd.pki.client_key)
    with Etcd([etcd.endpoint], access) as source:
        items = iter(source)
        next(items)
        etcd.put({"/other/b": "3"})
        etcd.ctl("compact", source.revision + 1)
        with pytest.raises(EtcdError, match="compacted the revision") as caught:
            list(items)

    assert "run the command again" in caught.value.hint


def test_what_an_api_server_stores(binaries, new_folder):
    """A scan tells Secrets by KMS v2, by v1 and unencrypted ones apart."""
    with running_world(binaries, new_folder()) as world:
        with world.unencrypted("v1"):
            world.create("early", "in clear")
        world.create("middle", "by v1")
        world.api.restart(world.encryption("v2", "v1"))
        world.create("late", "by v2")
        key_id = world.plugin.status().key_id
        source = ["--endpoints", world.etcd.url]

        told = scan(*source)
        rows = [row for row in told["rows"] if row["resource"] == "secrets"]
        shown = [
            hsm_kms("etcd", "show", f"secrets/default/{name}", *source).stdout
            for name in ("early", "middle", "late")
        ]
        refused = complaint_with(source, key_id)
        world.api.rewrite_secrets()
        after = scan(*source, "--fail-if", "unencrypted")

    found = {(row["provider"], row["name"], row["key_id"]) for row in rows}
    assert {
        ("identity", "", None),
        ("kms v1", NAMES["v1"], key_id),
        ("kms v2", NAMES["v2"], key_id),
    } == found
    assert 1 == told["unencrypted"]
    assert "anyone who can read etcd can read it" in shown[0]
    assert f"the key {key_id} on the token" in shown[1]
    assert f"decrypted_by: the key {key_id} on the token" in shown[2]
    assert f"hsm-kms: 2 objects under {key_id}; 1 object unencrypted" in refused
    assert [("kms v2", 3)] == [
        (row["provider"], row["objects"])
        for row in after["rows"]
        if row["resource"] == "secrets"
    ]


def complaint_with(source: list[str], key_id: str) -> str:
    """Scan for this key and for unencrypted objects; return the error message."""
    done = hsm_kms(
        *("etcd", "scan", *source, "--fail-if", f"key_id={key_id}"),
        *("--fail-if", "unencrypted"),
        check=False,
    )
    assert 1 == done.returncode
    return done.stderr
