"""Each Encrypt and Decrypt is one audit record."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from hsm_kms import errors
from hsm_kms.audit.stream import AuditStream
from tests.harness.wait import until
from tests.unit.api.api_service import KEY_ID, refused, serve
from tests.unit.audit.audit_rig import audit_path, lines, to


@pytest.fixture
def path(tmp_path):
    """The audit file."""
    return audit_path(tmp_path)


async def test_requests(path):
    """Encrypt and Decrypt of both APIs are recorded, and no other method."""
    audit = AuditStream(to(path))
    async with serve(audit=audit) as service:
        for method in ("v2.Status", "v2.Encrypt", "v2.Decrypt", "v1.Version"):
            await service.call(method)
        service.wrapper.path = "local"
        await service.call("v1.Encrypt")
        service.wrapper.error = errors.KeyRetiredError("retired")
        await refused(service.call("v1.Decrypt"))
        await refused(service.call("v2.Decrypt", uid="u-2"))
    await audit.close()
    fields = ("method", "uid", "key_id", "path", "code", "error")

    assert [
        ("v2.Encrypt", "u-1", KEY_ID, "token", "OK", None),
        ("v2.Decrypt", "u-1", KEY_ID, "token", "OK", None),
        ("v1.Encrypt", None, KEY_ID, "local", "OK", None),
        ("v1.Decrypt", None, None, None, "FAILED_PRECONDITION", "KeyRetiredError"),
        ("v2.Decrypt", "u-2", KEY_ID, None, "FAILED_PRECONDITION", "KeyRetiredError"),
    ] == [tuple(each[name] for name in fields) for each in lines(path)]
    assert all(0 <= each["seconds"] < 60 for each in lines(path))


async def test_what_a_client_chooses(path):
    """What a client sends is cleaned and shortened, and never its data."""
    audit = AuditStream(to(path))
    async with serve(audit=audit) as service:
        odd = 'a"\n\\u0000' + "x" * 2000
        await service.call("v2.Decrypt", uid=odd, key_id=odd[:1000])
        await refused(service.call("v2.Decrypt", uid=odd, key_id=odd))
    await audit.close()
    opened, too_long = lines(path)
    cleaned = "a???u0000" + "x" * 55

    assert (cleaned, cleaned) == (opened["uid"], opened["key_id"])
    assert ("INVALID_ARGUMENT", None) == (too_long["code"], too_long["key_id"])


async def test_a_client_that_gave_up(path):
    """A request whose client gave up is recorded once, as CANCELLED."""
    audit = AuditStream(to(path))
    async with serve(audit=audit) as service:
        service.wrapper.stall = asyncio.Event()
        call = service.call("v2.Encrypt")
        await until(lambda: service.wrapper.asked)
        call.cancel()
        await until(lambda: audit.report.written)
    await audit.close()
    (record,) = lines(path)

    assert ("CANCELLED", None) == (record["code"], record["error"])


async def test_refused_if_it_cannot_be_recorded(path):
    """With on_error: refuse there is no answer without a record; otherwise there is."""
    path.mkdir()
    audit = AuditStream(to(path, "refuse"))
    async with serve(audit=audit) as service:
        for method in ("v2.Encrypt", "v2.Decrypt", "v1.Encrypt", "v1.Decrypt"):
            assert (
                grpc.StatusCode.UNAVAILABLE,
                "the audit record cannot be written: see hsm-kms status",
            ) == await refused(service.call(method))
        await service.call("v2.Status")
        service.wrapper.error = errors.CiphertextError("malformed")
        code, _ = await refused(service.call("v2.Decrypt"))
        assert grpc.StatusCode.INVALID_ARGUMENT == code
        service.wrapper.error = None
        audit.adjust(to(path))
        await service.call("v2.Decrypt")
        await until(lambda: audit.report.lost == 6)
        path.rmdir()
        audit.adjust(to(path, "refuse"))
        await until(lambda: not audit.report.error)
        await service.call("v2.Decrypt")
    await audit.close()
    lost, answered = lines(path)

    assert ("lost", 6) == (lost["event"], lost["records"])
    assert "OK" == answered["code"]


class Hanging:
    """Record nothing, because the disk does not answer."""

    enabled = True
    fault = None

    async def wrote(self, _event):
        """Wait in vain."""
        await asyncio.Event().wait()


@pytest.mark.parametrize("error", [None, errors.CiphertextError("malformed")])
async def test_a_client_that_gave_up_waiting_for_the_record(error):
    """A request is counted also if its client did not wait for its record."""
    seen = []
    async with serve(audit=Hanging(), observe=lambda *each: seen.append(each)) as made:
        made.wrapper.error = error
        code, _ = await refused(made.call("v2.Decrypt", timeout=0.3))
        assert grpc.StatusCode.DEADLINE_EXCEEDED == code
        await until(lambda: seen)

    assert [("v2.Decrypt", "CANCELLED")] == [each[:2] for each in seen]
