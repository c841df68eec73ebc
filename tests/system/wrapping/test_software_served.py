"""Local KEKs behind the socket of a real server: reloads, outages, scopes, secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from functools import partial

import pytest

from hsm_kms.ipc.messages import Decrypt, Decrypted, FindKeys
from hsm_kms.ipc.values import Cipher
from hsm_kms.keys.listing import list_keys
from hsm_kms.token.process import Worker
from hsm_kms.wrapping.record import Kind, Record
from tests.harness.one_worker import configure, gate
from tests.harness.plugin import code_of
from tests.harness.token_keys import LABEL
from tests.harness.wait import wait_for
from tests.system.faults.observed import ObservedServer
from tests.system.wrapping.wrapping_rig import DEK, NESTED

AWAY = "run hsm-kms check on the node"
IN_SOFTWARE = "; writes continue with a local KEK"


def apis(v2, v1=None):
    """Return the section `apis` with these wrapping modes."""
    return {
        name: {"enabled": True, "wrapping": wrapping}
        for name, wrapping in (("v2", v2), ("v1", v1 or v2))
    }


class ReloadedServer(ObservedServer):
    """A server that is reloaded."""

    @property
    def taken(self):
        return len(self.plugin.events("configuration applied"))

    def reload(self, **sections):
        """Change sections of the configuration, and wait until they are applied."""
        before = self.taken
        self.tell(**sections)
        wait_for(lambda: self.taken > before)

    def tell(self, **sections):
        """Change sections of the configuration, atomically, and send SIGHUP."""
        plugin = self.plugin
        for name, section in sections.items():
            plugin.merge(name, section)
        plugin.write_config()
        os.kill(plugin.process.pid, signal.SIGHUP)

    def encrypt(self, api="v2", dek=DEK):
        """Encrypt by one of the APIs; return the record and the key_id if v2."""
        if api == "v1":
            return self.plugin.v1_encrypt(dek), None
        sealed = self.plugin.encrypt(dek)
        return sealed.ciphertext, sealed.key_id

    def decrypt(self, record):
        """Decrypt a record by the API that made it."""
        ciphertext, key_id = record
        if key_id is None:
            return self.plugin.v1_decrypt(ciphertext)
        return self.plugin.decrypt(ciphertext, key_id)

    def path(self, uid):
        """Return the path of a request in the log."""

        def found():
            logged = self.plugin.events("request")
            return [one for one in logged if one["uid"] == uid]

        (one,) = wait_for(found)
        assert "OK" == one["code"]
        return one["path"]

    def by_local(self, api="v2"):
        """Wait until a local KEK wraps; return its record."""

        def sealed():
            record = self.encrypt(api)
            return record if kind(record) is Kind.DEK_BY_LOCAL_KEK else None

        return wait_for(sealed)


def kind(record):
    return Record.decode(record[0]).header.kind


@pytest.fixture
def make_server(make_plugin, hsm):
    """Make servers on one token, started and well."""

    def make(wrapping="software", **sections):
        token = {"shared": True, "workers": 1, "sessions_per_worker": 2}
        sections = {"apis": apis(wrapping), "token": token} | sections
        server = ReloadedServer(plugin=make_plugin(hsm, **sections), hsm=hsm, shim=None)
        server.start()
        server.well()
        return server

    return make


def test_reloads(make_server):
    """A new wrapping mode is applied on the same workers; every record decrypts."""
    server = make_server("token")
    workers = server.workers()
    records = [server.encrypt(api) for api in ("v1", "v2")]
    steps = ["fallback", "software", "token", "software", "fallback", "token"]
    for wrapping in steps:
        server.reload(apis=apis(wrapping))
        made = [server.encrypt(api) for api in ("v1", "v2")]
        if wrapping == "software":
            made = [server.by_local("v1"), server.by_local("v2")]
        wanted = Kind.DEK_BY_LOCAL_KEK if wrapping == "software" else Kind.DEK_BY_TOKEN
        assert {wanted} == set(map(kind, made)), wrapping
        records += made
        assert [DEK] * len(records) == [server.decrypt(one) for one in records]

    told = [
        (one["api"], one["before"], one["wrapping"])
        for one in server.plugin.events("wrapping mode changed")
    ]
    changes = zip(["token", *steps], steps, strict=False)
    assert [(api, *change) for change in changes for api in ("v2", "v1")] == told
    assert workers == server.workers()
    assert 1 == len(server.plugin.events("token worker started"))


def test_one_api_alone(make_server):
    """A local KEK can wrap for v1 while the token wraps for v2."""
    server = make_server("token")
    server.reload(apis=apis("token", "software"))
    v1, v2 = server.by_local("v1"), server.encrypt("v2")
    crossed = (v2[0], None), (v1[0], server.plugin.status().key_id)

    assert Kind.DEK_BY_TOKEN == kind(v2)
    assert [DEK] * 4 == [server.decrypt(one) for one in (v1, v2, *crossed)]


def test_accept_local(make_server):
    """With `accept_local: false` records by local KEKs are refused, others are not."""
    server = make_server()
    local = [server.by_local("v1"), server.by_local("v2")]
    refuses = {"local_keys": {"accept_local": False}}
    server.tell(**refuses)  # not together with what makes them
    wait_for(lambda: "accept_local" in server.plugin.log())
    assert [DEK] * 2 == [server.decrypt(one) for one in local]

    server.reload(apis=apis("token"), **refuses)
    by_token = [server.encrypt(api) for api in ("v1", "v2")]
    for one in local:
        assert "FAILED_PRECONDITION" == code_of(partial(server.decrypt, one))
    assert [DEK] * 2 == [server.decrypt(one) for one in by_token]

    server.reload(local_keys={"accept_local": True})
    assert [DEK] * 4 == [server.decrypt(one) for one in local + by_token]


def test_path_is_reported(make_server):
    """Log and metrics show the path of each request: token, local or local-uncached."""
    server = make_server()
    sealed, key_id = server.by_local()
    server.plugin.stop()
    server.start()
    server.well()
    wait_for(lambda: server.metrics().get(created("ok")))
    server.plugin.decrypt(sealed, key_id, uid="cold")
    server.plugin.decrypt(sealed, key_id, uid="warm")
    server.plugin.encrypt(DEK, uid="software")
    server.decrypt(server.encrypt("v1"))
    server.reload(apis=apis("token"))
    by_token = server.plugin.encrypt(DEK, uid="token")
    server.plugin.decrypt(by_token.ciphertext, key_id, uid="back")
    assert "INVALID_ARGUMENT" == code_of(lambda: server.plugin.decrypt(b"?", key_id))
    metrics = server.metrics()

    paths = {"cold": "local-uncached", "warm": "local", "software": "local"}
    paths |= {"token": "token", "back": "token"}
    assert paths == {uid: server.path(uid) for uid in paths}
    name = "hsm_kms_dek_operations_total"
    assert {
        ("v2.Decrypt", "local-uncached"): 1,
        ("v2.Decrypt", "local"): 1,
        ("v2.Decrypt", "token"): 1,
        ("v2.Encrypt", "local"): 1,
        ("v2.Encrypt", "token"): 1,
        ("v1.Encrypt", "local"): 1,
        ("v1.Decrypt", "local"): 1,
    } == {
        (method, path): metrics[label]
        for method in ("v2.Decrypt", "v2.Encrypt", "v1.Decrypt", "v1.Encrypt")
        for path in ("token", "local", "local-uncached")
        if metrics.get(label := f'{name}{{method="{method}",path="{path}"}}')
    }


def created(result):
    return f'hsm_kms_local_keks_created_total{{result="{result}"}}'


def test_scopes(make_server):
    """Of two clusters with one KEK neither decrypts the records of the other."""
    servers = {scope: make_server("token", scope=scope) for scope in ("east", "west")}
    records = {
        scope: [server.encrypt("v1"), server.encrypt("v2")]
        for scope, server in servers.items()
    }
    for scope, server in servers.items():
        server.reload(apis=apis("software"))
        records[scope] += [server.by_local("v1"), server.by_local("v2")]

    for reader, server in servers.items():
        for writer, made in records.items():
            codes = {code_of(partial(server.decrypt, one)) for one in made}
            assert codes == {"OK" if reader == writer else "INVALID_ARGUMENT"}

    same = make_server("token", scope="east")
    assert [DEK] * 4 == [same.decrypt(one) for one in records["east"]]


def test_reload_in_an_outage(make_server, hsm):
    """In an outage a reload that needs the token is rejected; others are applied."""
    server = make_server(token={"start_timeout": "8s"})
    record = server.by_local()
    hsm.take_away()
    wait_for(lambda: server.admin()["state"] == "degraded")
    server.reload(apis=apis("fallback"), health={"grace": "0s"})
    server.plugin.wait_healthz(IN_SOFTWARE)
    sealed = server.encrypt()
    server.tell(keys={"suffix": "two"})
    wait_for(lambda: "the token would become unavailable" in server.plugin.log(), 120)
    again = server.encrypt()
    records = [record, sealed, again]

    assert [Kind.DEK_BY_LOCAL_KEK] * 2 == [kind(sealed), kind(again)]
    assert {record[1]} == {one[1] for one in records}
    assert [DEK] * 3 == [server.decrypt(one) for one in records]

    hsm.put_back()
    server.plugin.wait_healthz("ok")
    os.kill(server.plugin.process.pid, signal.SIGHUP)
    wait_for(lambda: server.plugin.status().key_id == f"{record[1]}.two")
    assert [DEK] * 3 == [server.decrypt(one) for one in records]
    assert f"{record[1]}.two" == server.encrypt()[1]


def test_restart_in_an_outage(make_server, hsm):
    """After a restart in an outage all requests fail, and Status says why."""
    server = make_server("software")
    record = server.by_local()
    server.plugin.stop()
    hsm.take_away()
    server.start()
    for wrapping in ("software", "fallback", "token"):
        if wrapping != "software":
            server.reload(apis=apis(wrapping))
        server.plugin.wait_healthz(AWAY)
        status = server.plugin.status()

        assert (record[1], "failed") == (status.key_id, server.admin()["state"])
        assert IN_SOFTWARE not in status.healthz
        assert 503 == server.get("/readyz")[0]
        for api, key_id in (("v1", None), ("v2", record[1])):
            same = record[0], key_id
            assert "UNAVAILABLE" == code_of(partial(server.encrypt, api))
            assert "UNAVAILABLE" == code_of(partial(server.decrypt, same))

    hsm.put_back()
    server.plugin.wait_healthz("ok")
    assert DEK == server.decrypt(record)
    assert record[1] == server.encrypt()[1]


def test_no_secret_is_shown(make_server, hsm, pin_file, directory):
    """Log, metrics and status contain neither a local KEK nor a DEK."""
    server = make_server()
    dek = os.urandom(32)
    sealed, key_id = server.by_local()
    sealed = server.plugin.encrypt(dek).ciphertext
    wrong = sealed[:-1] + bytes([sealed[-1] ^ 1])
    server.decrypt((sealed, key_id))
    assert "INVALID_ARGUMENT" == code_of(lambda: server.plugin.decrypt(wrong, key_id))
    local_kek = asyncio.run(opened(sealed, hsm, pin_file, directory))
    hsm.take_away()
    wait_for(lambda: server.admin()["state"] == "degraded")
    code_of(server.encrypt)
    told = server.get("/metrics")[1] + str(server.admin())
    server.plugin.stop()
    told += server.plugin.log()

    assert key_id in told
    for secret in (local_kek, dek):
        for form in (
            secret.hex(),
            base64.b64encode(secret).decode(),
            repr(secret)[2:-1],
            json.dumps(repr(secret)[2:-1])[1:-1],
            json.dumps(secret.decode("latin-1"))[1:-1],
            str(list(secret))[1:-1],
            *(secret[at : at + 8].hex() for at in range(0, 32, 8)),
        ):
            assert form not in told


async def opened(sealed, hsm, pin_file, directory):
    """Decrypt the local KEK of a record with the token; return its bytes."""
    record = Record.decode(Record.decode(sealed).header.nested, kinds=NESTED)
    worker = await Worker.spawn(0, hsm.env)
    try:
        await worker.configure(configure())
        await gate(pin_file, directory).login(worker)
        (key,) = await list_keys(partial(worker.ask, seconds=5), FindKeys(label=LABEL))
        reply = await worker.ask(
            Decrypt(
                ref=key.ref,
                fingerprint=key.fingerprint,
                cipher=Cipher.GCM,
                aad=record.header.aad(""),
                iv=record.iv,
                ciphertext=record.ciphertext,
            ),
            5,
        )
    finally:
        await worker.leave()
    assert isinstance(reply, Decrypted)
    assert 32 == len(reply.plaintext)
    return reply.plaintext
