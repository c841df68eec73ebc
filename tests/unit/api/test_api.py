"""Both services as a client meets them while nothing fails."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest

import hsm_kms
from hsm_kms.api.call import OBSERVER
from tests.harness.wait import patient, until
from tests.unit.api.api_service import KEY_ID, State, refused, serve


async def test_v2_round_trip():
    """Decrypt returns the plaintext that Encrypt was given (conformance 1)."""
    async with serve() as service:
        sealed = await service.call("v2.Encrypt", plaintext=b"0123456789abcdef" * 2)
        opened = await service.call(
            "v2.Decrypt", ciphertext=sealed.ciphertext, key_id=sealed.key_id
        )

    assert KEY_ID == sealed.key_id
    assert {} == dict(sealed.annotations)
    assert b"0123456789abcdef" * 2 == opened.plaintext


async def test_v1_round_trip():
    """The health check of an API server, `ping`, round-trips (conformance 2 and 44)."""
    async with serve() as service:
        sealed = await service.call("v1.Encrypt", plain=b"ping")
        opened = await service.call("v1.Decrypt", cipher=sealed.cipher)

    assert b"ping" == opened.plain


async def test_v1_version():
    """Version returns the API, the program and its semver (conformance 43)."""
    async with serve() as service:
        answer = await service.call("v1.Version")

    assert ("v1beta1", "hsm-kms", hsm_kms.__version__) == (
        answer.version,
        answer.runtime_name,
        answer.runtime_version,
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+([-+].+)?", answer.runtime_version)


@pytest.mark.parametrize("version", ["", "v1", "v2", "V1beta1", "v1beta1 ", "v1beta2"])
@pytest.mark.parametrize("method", ["v1.Version", "v1.Encrypt", "v1.Decrypt"])
async def test_v1_wrong_version(method, version):
    """Requests of any other version are refused (conformance 46)."""
    async with serve() as service:
        code, _ = await refused(service.call(method, version=version))

    assert grpc.StatusCode.INVALID_ARGUMENT is code
    assert [] == service.wrapper.asked


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_status_when_well(version):
    """Status returns version, ok and the announced key_id (conformance 8)."""
    async with serve(version=version) as service:
        answer = await service.call("v2.Status")

    assert (version, "ok", KEY_ID) == (answer.version, answer.healthz, answer.key_id)


async def test_status_when_failed():
    """Status reports a failure in healthz, with the key_id (conformance 9 to 11)."""
    async with serve() as service:
        service.health.state = State("failed", "no token in slot 3; insert it")
        answer = await service.call("v2.Status")

    assert ("v2", "no token in slot 3; insert it", KEY_ID) == (
        answer.version,
        answer.healthz,
        answer.key_id,
    )


async def test_status_in_a_short_outage():
    """Status says ok in an outage in which no request has failed yet."""
    async with serve() as service:
        service.health.state = State("degraded")
        answer = await service.call("v2.Status")

    assert ("ok", KEY_ID) == (answer.healthz, answer.key_id)


async def test_status_announces():
    """A Status announces its key_id, except to a client that only observes."""
    looks = ((OBSERVER, "1"),)
    async with serve() as service:
        answers = [
            await service.call("v2.Status", metadata=metadata)
            for metadata in (looks, None, ((OBSERVER, "0"),), (("other", "1"),))
        ]

    assert 3 == service.health.announced
    assert {KEY_ID} == {answer.key_id for answer in answers}


@pytest.mark.parametrize(
    "state",
    [
        State("starting", "C_Login failed", key_id="", answers=False),
        State("failed", "C_Login failed", answers=False),
        State("degraded", "ok", answers=False),
    ],
    ids=["starting", "failed", "degraded"],
)
async def test_status_that_does_not_answer(state):
    """Status is refused without its cause, and announces nothing.

    There is no key_id yet, or writes must stop.
    """
    async with serve() as service:
        service.health.state = state
        answer = await refused(service.call("v2.Status"))

    assert 0 == service.health.announced
    assert (
        grpc.StatusCode.UNAVAILABLE,
        "the token is not ready: see hsm-kms check",
    ) == answer


async def test_v1_decrypt_names_no_key():
    """The wrapper gets the key_id of a v2 request, and None for v1."""
    async with serve() as service:
        await service.call("v2.Decrypt", key_id="some-id")
        await service.call("v1.Decrypt")

    assert ["some-id", None] == [key_id for _, key_id, _ in service.wrapper.asked]


@pytest.mark.parametrize("method", ["v2.Encrypt", "v2.Decrypt", "v1.Encrypt"])
async def test_deadline(method):
    """The wrapper gets the client's deadline in the loop's time."""
    async with serve() as service:
        now = asyncio.get_running_loop().time()
        await service.call(method, timeout=60)
        await service.call(method, timeout=None)
    deadlines = [deadline for *_, deadline in service.wrapper.asked]

    assert pytest.approx(now + 60, abs=10) == deadlines[0]
    assert deadlines[1] is None


async def test_client_gives_up():
    """Cancelling a call cancels the wrapper, and the next call is served."""
    async with serve() as service:
        service.wrapper.stall = asyncio.Event()
        call = service.call("v2.Decrypt")
        await until(lambda: service.wrapper.asked)
        call.cancel()
        await until(lambda: service.wrapper.cancelled)
        service.wrapper.stall = None
        answer = await service.call("v2.Decrypt")

    assert b"abc" == answer.plaintext


async def test_deadline_passes():
    """A call whose deadline passes cancels the wrapper (conformance 42)."""
    async with serve() as service:
        service.wrapper.stall = asyncio.Event()
        code, _ = await refused(service.call("v2.Decrypt", timeout=patient(3)))
        await until(lambda: service.wrapper.cancelled)

    assert grpc.StatusCode.DEADLINE_EXCEEDED is code


async def test_many_at_once():
    """Five hundred calls wait side by side, and none is refused (conformance 54)."""
    async with serve() as service:
        service.wrapper.stall = asyncio.Event()
        calls = [service.call("v2.Decrypt") for _ in range(500)]
        gathered = asyncio.gather(*calls)
        await until(lambda: len(calls) == len(service.wrapper.asked))
        status = await service.call("v2.Status")
        service.wrapper.stall.set()
        answers = await gathered

    assert "ok" == status.healthz
    assert {b"abc"} == {answer.plaintext for answer in answers}


@pytest.mark.parametrize(
    ("served", "missing"),
    [
        ({"v2": True, "v1": False}, "v1.Version"),
        ({"v2": False, "v1": True}, "v2.Status"),
    ],
    ids=["v2 only", "v1 only"],
)
async def test_switched_off(served, missing):
    """An API that is not enabled is not served."""
    async with serve(**served) as service:
        code, _ = await refused(service.call(missing))

    assert grpc.StatusCode.UNIMPLEMENTED is code


@pytest.mark.parametrize(
    "path",
    [
        "/v2alpha1.KeyManagementService/Status",
        "/v2.KeyManagementService/Version",
        "/v2.KeyManagementService/status",
        "/v1beta1.KeyManagementService/Status",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_other_methods(path):
    """Any other method is answered as UNIMPLEMENTED (conformance 6)."""
    async with serve() as service:
        code, _ = await refused(service.channel.unary_unary(path)(b""))

    assert grpc.StatusCode.UNIMPLEMENTED is code
