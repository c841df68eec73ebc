"""Requests that no gRPC client sends, written by hand over HTTP/2."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from hsm_kms.api.rpc import kms_v1beta1_pb2, kms_v2_pb2
from tests.harness.raw_http2 import call
from tests.unit.api.api_service import PATHS, VALID, serve

OK, INVALID_ARGUMENT = 0, 3
BAD_REQUEST = "the request has an empty, oversized or wrong field"

# Fields that no version of the API has: number 99 and 1000, of every wire type.
UNKNOWN = {
    "varint": bytes.fromhex("98 06 2a"),
    "fixed64": bytes.fromhex("99 06") + bytes(8),
    "bytes": bytes.fromhex("9a 06 03") + b"abc",
    "group": bytes.fromhex("9b 06 08 01 9c 06"),
    "fixed32": bytes.fromhex("9d 06") + bytes(4),
    "far": bytes.fromhex("c0 3e 01"),
}


def message(method: str) -> bytes:
    """Return a valid request of a method, serialised."""
    api, name = method.split(".")
    module = {"v2": kms_v2_pb2, "v1": kms_v1beta1_pb2}[api]
    return getattr(module, f"{name}Request")(**VALID[method]).SerializeToString()


@pytest.mark.parametrize("spell", ["localhost", "bare", "percent", "@kms.sock", ""])
@pytest.mark.parametrize("method", ["v2.Status", "v1.Version"])
async def test_authority(method, spell):
    """Every :authority that an API server ever sent is served (conformance 3)."""
    async with serve() as service:
        path = str(service.socket)
        authority = {"bare": path, "percent": quote(path, safe="")}.get(spell, spell)
        answer = await call(
            service.socket, PATHS[method], message(method), authority=authority
        )

    assert (OK, None) == (answer.status, answer.reset)
    if method == "v2.Status":
        assert "ok" == kms_v2_pb2.StatusResponse.FromString(answer.message).healthz


@pytest.mark.parametrize("method", VALID)
async def test_unknown_fields(method):
    """Fields of a later version are ignored (conformance 7)."""
    async with serve() as service:
        plain = await call(service.socket, PATHS[method], message(method))
        for unknown in UNKNOWN.values():
            for sent in (message(method) + unknown, unknown + message(method)):
                answer = await call(service.socket, PATHS[method], sent)
                assert (OK, plain.message) == (answer.status, answer.message)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\xff", id="half a tag"),
        pytest.param(b"\x0a\x05ab", id="shorter than it says"),
        pytest.param(b"\x1a\x01\xff", id="key_id is not UTF-8"),
        pytest.param(b"\x12\x02\xc3\x28", id="uid is not UTF-8"),
        pytest.param(b"\x12\x03\xed\xa0\x80", id="uid is a surrogate"),
        pytest.param(b"\x22\x03\x0a\x01\xff", id="annotation is not UTF-8"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="4 GiB to come"),
        pytest.param(b"\x07", id="no such wire type"),
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"\x0b" * 200, id="groups without end"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_malformed_messages(sent):
    """A malformed message is answered by a fixed sentence (conformance 39 and 53)."""
    async with serve() as service:
        answer = await call(service.socket, PATHS["v2.Decrypt"], sent)
        after = await call(service.socket, PATHS["v2.Decrypt"], message("v2.Decrypt"))

    assert (INVALID_ARGUMENT, BAD_REQUEST) == (answer.status, answer.sentence)
    assert OK == after.status


async def test_every_truncation():
    """A request cut at any byte is answered by a fixed sentence, never by a crash."""
    whole = message("v2.Decrypt")
    async with serve() as service:
        for size in range(len(whole)):
            answer = await call(service.socket, PATHS["v2.Decrypt"], whole[:size])
            assert (INVALID_ARGUMENT, BAD_REQUEST) == (
                answer.status,
                answer.sentence,
            ) or answer.status == OK


@pytest.mark.parametrize(
    "framed",
    [b"\x00\xff\xff\xff\xff", b"\x01\x00\x00\x00\x01x"],
    ids=["4 GiB frame", "not compressed as it says"],
)
async def test_malformed_frames(framed):
    """Broken framing is refused by gRPC, and the server keeps running."""
    async with serve() as service:
        answer = await call(service.socket, PATHS["v2.Status"], framed=framed)
        after = await call(service.socket, PATHS["v2.Status"])

    assert answer.status != OK
    assert OK == after.status


def test_annotation_twice():
    """The last of two annotations with one key counts, as in all of protobuf."""
    request = kms_v2_pb2.DecryptRequest.FromString(
        bytes.fromhex("22 06 0a 01 61 12 01 78 22 06 0a 01 61 12 01 79")
    )

    assert {"a": b"y"} == dict(request.annotations)
