"""Errors as the client gets them, and as the log has them."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest

from hsm_kms import errors
from hsm_kms.api import codes
from hsm_kms.api.call import MAX_UID_LOGGED, safe_word
from hsm_kms.log import key_id_hash
from hsm_kms.wrapping.record import MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES
from tests.harness.log_capture import captured
from tests.harness.wait import until
from tests.unit.api.api_service import KEY_ID, refused, serve

SECRET = "sesame-1234"  # noqa: S105
BAD_REQUEST = (
    grpc.StatusCode.INVALID_ARGUMENT,
    "the request has an empty, oversized or wrong field",
)


def family(cls=errors.HsmKmsError):
    """Return all classes below one."""
    return {
        found
        for sub in cls.__subclasses__()
        if sub.__module__ == errors.__name__
        for found in ({sub} | family(sub))
    }


# What a caller does next, and the codes that tell an API server so.
BASES = {
    errors.RequestRefusedError: {grpc.StatusCode.INVALID_ARGUMENT},
    errors.PreconditionError: {grpc.StatusCode.FAILED_PRECONDITION},
    errors.UnavailableError: {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    },
}
IN_NO_REQUEST = {
    *(errors.ConfigError, errors.SocketError, errors.WrongUserError),
    errors.CommandInterruptedError,
}


def test_every_class_has_its_row():
    """The table has one row for each concrete class (conformance 53)."""
    assert family() - set(BASES) - IN_NO_REQUEST == set(codes.REFUSALS)


@pytest.mark.parametrize("error", codes.REFUSALS)
def test_code_follows_from_the_base(error):
    """Each class has one base, whose codes say the same as the base does."""
    (base,) = (each for each in BASES if issubclass(error, each))

    assert codes.REFUSALS[error].code in BASES[base]


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError([SECRET]),
        errors.SocketError(SECRET),
        errors.WrongUserError(SECRET),
    ],
)
def test_an_error_of_the_start_is_a_bug_in_an_rpc(error):
    """An error that only a start can raise is answered as INTERNAL."""
    assert codes.INTERNAL == codes.refusal(error)


def test_sentences_are_fixed_text():
    """Sentences are short plain text without a place for a value."""
    for row in codes.REFUSALS.values():
        assert re.fullmatch(r"[a-z][A-Za-z_,: -]{8,78}[a-z]", row.sentence)


def test_an_unlisted_class_is_internal():
    """A class without a row does not inherit its parent's row."""

    class NewError(errors.TokenError):
        pass

    assert codes.INTERNAL == codes.refusal(NewError(SECRET))


@pytest.mark.parametrize("method", ["v2.Encrypt", "v2.Decrypt", "v1.Encrypt"])
async def test_error_on_the_wire(method):
    """An error is answered with the code and sentence of its class, not its text."""
    async with serve() as service:
        for cls, row in codes.REFUSALS.items():
            service.wrapper.error = cls(SECRET, hint=SECRET)
            assert tuple(row) == await refused(service.call(method))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        TimeoutError(SECRET),
        OSError(5, SECRET),
        AssertionError(SECRET),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
        grpc.RpcError(SECRET),
        StopAsyncIteration(SECRET),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_bugs_are_internal(error):
    """Any other exception is answered by one sentence and logged without values."""
    with captured() as stream:
        async with serve() as service:
            service.wrapper.error = error
            answer = await refused(service.call("v2.Decrypt"))
            service.wrapper.error = None
            await service.call("v2.Decrypt")

    assert (grpc.StatusCode.INTERNAL, "internal error") == answer
    assert SECRET not in stream.getvalue()
    event = stream.events()[0]
    assert ("error", "INTERNAL") == (event["level"], event["code"])
    assert type(error).__name__ == event["trace"][0]
    assert event["trace"][-1].endswith(" in Reverser._turn")


@pytest.mark.parametrize(
    ("method", "fields", "fits"),
    [
        ("v2.Encrypt", {"plaintext": b""}, False),
        ("v2.Encrypt", {"plaintext": b"x"}, True),
        ("v2.Encrypt", {"plaintext": b"x" * MAX_PLAINTEXT_BYTES}, True),
        ("v2.Encrypt", {"plaintext": b"x" * (MAX_PLAINTEXT_BYTES + 1)}, False),
        ("v1.Encrypt", {"plain": b""}, False),
        ("v1.Encrypt", {"plain": b"x" * MAX_PLAINTEXT_BYTES}, True),
        ("v1.Encrypt", {"plain": b"x" * (MAX_PLAINTEXT_BYTES + 1)}, False),
        ("v2.Decrypt", {"ciphertext": b""}, False),
        ("v2.Decrypt", {"ciphertext": b"x" * MAX_RECORD_BYTES}, True),
        ("v2.Decrypt", {"ciphertext": b"x" * (MAX_RECORD_BYTES + 1)}, False),
        ("v2.Decrypt", {"ciphertext": b"x" * 4 * 1024 * 1024}, False),
        ("v1.Decrypt", {"cipher": b""}, False),
        ("v1.Decrypt", {"cipher": b"x" * MAX_RECORD_BYTES}, True),
        ("v1.Decrypt", {"cipher": b"x" * (MAX_RECORD_BYTES + 1)}, False),
        ("v1.Decrypt", {"cipher": b"x" * 4 * 1024 * 1024}, False),
        ("v2.Decrypt", {"key_id": ""}, False),
        ("v2.Decrypt", {"key_id": "\0"}, True),
        ("v2.Decrypt", {"key_id": "x" * 1024}, True),
        ("v2.Decrypt", {"key_id": "x" * 1025}, False),
        ("v2.Decrypt", {"key_id": "é" * 512}, True),
        ("v2.Decrypt", {"key_id": "é" * 513}, False),
        ("v2.Decrypt", {"annotations": {"a.b": b"x"}}, True),
        ("v2.Decrypt", {"annotations": {"a.b": b"x" * 32765}}, True),
        ("v2.Decrypt", {"annotations": {"a.b": b"x" * 32766}}, False),
        ("v2.Decrypt", {"annotations": {"é" * 16384: b""}}, True),
        ("v2.Decrypt", {"annotations": {"é" * 16384: b"x"}}, False),
        ("v2.Decrypt", {"annotations": {str(i): b"" for i in range(40000)}}, False),
    ],
)
async def test_sizes(method, fields, fits):
    """Fields of a wrong size never reach the wrapper (conformance 23 and 39)."""
    async with serve() as service:
        if fits:
            await service.call(method, **fields)
        else:
            assert BAD_REQUEST == await refused(service.call(method, **fields))
        assert fits == bool(service.wrapper.asked)


async def test_larger_than_any_message():
    """A message above the limit is refused by gRPC, and the server keeps running."""
    async with serve() as service:
        code, _ = await refused(service.call("v2.Decrypt", ciphertext=bytes(5 << 20)))
        answer = await service.call("v2.Status")

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is code
    assert "ok" == answer.healthz


async def test_log_of_a_request():
    """A request is one debug event with method, uid, key and code (conformance 52)."""
    with captured() as stream:
        async with serve() as service:
            await service.call("v2.Encrypt", plaintext=SECRET.encode(), uid="uid-7")
            await service.call("v2.Status")
            await service.call("v1.Decrypt", cipher=SECRET.encode())
    encrypt, status, decrypt = stream.events()

    assert 0 <= encrypt.pop("duration_seconds") < 1
    assert encrypt.pop("timestamp")
    assert {
        "event": "request",
        "level": "debug",
        "logger": "hsm_kms.api",
        "method": "v2.Encrypt",
        "uid": "uid-7",
        "key_id_hash": key_id_hash(KEY_ID),
        "path": "token",
        "code": "OK",
    } == encrypt
    assert "path" not in status
    assert ("v2.Status", key_id_hash(KEY_ID)) == (
        status["method"],
        status["key_id_hash"],
    )
    assert ("v1.Decrypt", "", key_id_hash(KEY_ID)) == (
        decrypt["method"],
        decrypt["uid"],
        decrypt["key_id_hash"],
    )
    assert SECRET not in stream.getvalue()


async def test_log_of_a_refusal():
    """A refusal is one warning event that gives the reason."""
    with captured("info") as stream:
        async with serve() as service:
            service.wrapper.error = errors.TokenError("C_Decrypt failed", hint="wait")
            await service.call("v2.Status")
            await refused(service.call("v2.Decrypt", key_id="elsewhere"))
    (event,) = stream.events()

    assert {
        "level": "warning",
        "code": "UNAVAILABLE",
        "error": "TokenError",
        "reason": "C_Decrypt failed; wait",
        "key_id_hash": key_id_hash("elsewhere"),
    }.items() <= event.items()
    assert "path" not in event


async def test_log_of_a_client_that_gave_up():
    """A client that gives up is one debug event with the code CANCELLED."""
    with captured() as stream:
        async with serve() as service:
            service.wrapper.stall = asyncio.Event()
            call = service.call("v2.Decrypt")
            await until(lambda: service.wrapper.asked)
            call.cancel()
            await until(stream.events)
    (event,) = stream.events()

    assert ("debug", "CANCELLED") == (event["level"], event["code"])


@pytest.mark.parametrize(
    ("uid", "logged"),
    [
        ("", ""),
        (
            "0b7d2c4e-8d6a-4f53-9d0e-2f6f0d1b8a11",
            "0b7d2c4e-8d6a-4f53-9d0e-2f6f0d1b8a11",
        ),
        ('a\n{"level":"error"} é\x1b[0m\0', "a???level?:?error??????0m?"),
        ("x" * 100_000, "x" * MAX_UID_LOGGED),
    ],
    ids=["none", "uuid", "hostile", "long"],
)
def test_uid_in_the_log(uid, logged):
    """The log shows a uid as one short plain word, whatever the client sent."""
    assert logged == safe_word(uid)
