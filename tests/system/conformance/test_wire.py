"""Conformance, "Wire": items 1 to 7."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from hsm_kms.api.rpc import kms_v1beta1_pb2_grpc, kms_v2_pb2_grpc
from tests.harness.plugin import code_of
from tests.harness.raw_http2 import call
from tests.system.conformance.clients import DEK
from tests.system.conformance.wire import field, parse
from tests.unit.api.test_api_wire import UNKNOWN

OK, UNIMPLEMENTED = 0, 12
V2 = "/v2.KeyManagementService/"
V1 = "/v1beta1.KeyManagementService/"
UID = field(2, b"0b7d2c4e-8d6a-4f53-9d0e-2f6f0d1b8a11")
V1BETA1 = field(1, b"v1beta1")


async def ask(plugin, method: str, message: bytes = b"", **more) -> dict[int, bytes]:
    """Call a method by its path; return the fields of the answer by number."""
    answer = await call(plugin.socket, method, message, **more)
    assert (OK, None) == (answer.status, answer.reset)
    return parse(answer.message)


async def test_1_v2_methods_and_field_numbers(served):
    """The three methods of v2 answer at their paths, with the right field numbers."""
    status = await ask(served, V2 + "Status")
    sealed = await ask(served, V2 + "Encrypt", field(1, DEK) + UID)
    annotation = field(4, field(1, b"some.name") + field(2, b"value"))
    request = field(1, sealed[1]) + UID + field(3, sealed[2]) + annotation
    opened = await ask(served, V2 + "Decrypt", request)

    assert {1: b"v2", 2: b"ok", 3: sealed[2]} == status
    assert {1, 2} == set(sealed)
    assert {1: DEK} == opened


async def test_2_v1_methods_and_field_numbers(served):
    """The three methods of v1 answer on the same socket, too."""
    version = await ask(served, V1 + "Version", V1BETA1)
    sealed = await ask(served, V1 + "Encrypt", V1BETA1 + field(2, DEK))
    opened = await ask(served, V1 + "Decrypt", V1BETA1 + field(2, sealed[1]))

    assert (b"v1beta1", b"hsm-kms") == (version[1], version[2])
    assert {1, 2, 3} == set(version)
    assert {1} == set(sealed)
    assert {1: DEK} == opened


def test_2_both_stubs_in_one_process(served):
    """One process can load the stubs of both APIs and use both."""
    assert {
        kms_v1beta1_pb2_grpc.__name__,
        kms_v2_pb2_grpc.__name__,
    } == {type(served.v1).__module__, type(served.v2).__module__}
    assert b"ping" == served.v1_decrypt(served.v1_encrypt(b"ping"))
    assert "v2" == served.status().version


@pytest.mark.parametrize("off", ["v1", "v2"])
async def test_2_each_api_can_be_switched_off(make_plugin, hsm, off):
    """A disabled API answers UNIMPLEMENTED; the other one works."""
    apis = {name: {"enabled": name != off} for name in ("v1", "v2")}
    plugin = make_plugin(hsm, apis=apis).start()
    answers = {
        "v1": await call(plugin.socket, V1 + "Version", V1BETA1),
        "v2": await call(plugin.socket, V2 + "Decrypt"),
    }

    assert UNIMPLEMENTED == answers.pop(off).status
    assert UNIMPLEMENTED not in {answer.status for answer in answers.values()}


@pytest.mark.parametrize("spell", ["localhost", "bare", "percent", "@kms.sock", ""])
async def test_3_authority(served, spell):
    """The server accepts every :authority that an API server sends."""
    path = str(served.socket)
    authority = {"bare": path, "percent": quote(path, safe="")}.get(spell, spell)
    sealed = await ask(served, V2 + "Encrypt", field(1, DEK), authority=authority)
    request = field(1, sealed[1]) + field(3, sealed[2])

    assert {1: DEK} == await ask(served, V2 + "Decrypt", request, authority=authority)


def test_4_endpoint_as_kubernetes_writes_it(make_plugin, hsm):
    """The server listens on a socket given as unix:///path."""
    plugin = make_plugin(hsm)
    plugin.config["listen"]["socket"] = f"unix://{plugin.socket}"
    plugin.write_config()
    plugin.start().wait_healthz("ok")

    assert f"unix:///{str(plugin.socket)[1:]}" in plugin.config_file.read_text()


def test_4_abstract_socket_is_refused(make_plugin, hsm):
    """An abstract socket, which has no owner and no mode, is refused."""
    plugin = make_plugin(hsm, listen={"socket": "unix:///@kms.sock"})
    result = plugin.cli("serve")

    assert 2 == result.returncode
    assert "must not be abstract: such a socket has no owner and no mode" in (
        result.stderr
    )


def test_5_endpoint_with_a_host_part(make_plugin, hsm):
    """A unix:// endpoint with a host part is refused, with the cure."""
    plugin = make_plugin(hsm, listen={"socket": "unix://run/kms.sock"})
    result = plugin.cli("serve")

    assert 2 == result.returncode
    assert (
        "listen.socket has a host part, which Kubernetes would silently drop; "
        "write unix:/// with three slashes, then the path"
    ) in result.stderr.replace("listen.socket: ", "listen.socket ")


@pytest.mark.parametrize(
    "method",
    [
        "/v2alpha1.KeyManagementService/Status",
        "/v2beta1.KeyManagementService/Encrypt",
        "/v1.KeyManagementService/Version",
        V2 + "Version",
        V2 + "status",
        V2,
        V1 + "Status",
        "/grpc.health.v1.Health/Check",
        "/",
    ],
)
async def test_6_other_methods(served, method):
    """Unknown methods answer UNIMPLEMENTED."""
    answer = await call(served.socket, method)

    assert UNIMPLEMENTED == answer.status
    assert "OK" == code_of(served.status)


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
async def test_7_unknown_fields(served, unknown):
    """Every request ignores unknown fields."""
    status = await ask(served, V2 + "Status", unknown)
    sealed = await ask(served, V2 + "Encrypt", unknown + field(1, DEK))
    request = field(1, sealed[1]) + unknown + field(3, sealed[2])
    old = await ask(served, V1 + "Encrypt", V1BETA1 + unknown + field(2, b"ping"))

    assert b"ok" == status[2]
    assert {1: DEK} == await ask(served, V2 + "Decrypt", request)
    assert {1: b"ping"} == await ask(
        served, V1 + "Decrypt", V1BETA1 + field(2, old[1]) + unknown
    )
    assert {1, 2, 3} == set(await ask(served, V1 + "Version", unknown + V1BETA1))
