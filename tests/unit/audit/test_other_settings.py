"""The section `audit` changes while records are being lost."""

from __future__ import annotations

import pytest

from hsm_kms.audit.stream import AuditStream
from hsm_kms.config.schema import Audit
from hsm_kms.errors import AuditError
from tests.harness.wait import until
from tests.unit.audit.audit_rig import audit_path, event, lines, numbers, to


@pytest.fixture
def path(tmp_path):
    """The audit file."""
    return audit_path(tmp_path)


@pytest.fixture
async def losing(path):
    """A stream that has lost a record, because its file is a directory."""
    path.mkdir()
    audit = AuditStream(to(path, "refuse"))
    with pytest.raises(AuditError, match="Is a directory"):
        await audit.wrote(event())
    return audit


async def test_another_file(losing, path):
    """The first record of the other file says why records are missing."""
    other = path.with_name("other.jsonl")
    losing.adjust(to(other, "refuse"))
    await until(lambda: losing.fault is None)
    await losing.wrote(event(1))
    lost, after = lines(other)

    assert ("lost", 1) == (lost["event"], lost["records"])
    assert f"cannot write the audit file {path}: Is a directory" == lost["reason"]
    assert 1 == after["worker"]


async def test_turned_off(losing, path, capfd):
    """While the audit is off, stdout gets no record, and the file what is due to it."""
    losing.adjust(Audit())
    losing.record(event(1))
    path.rmdir()
    await until(path.exists)
    losing.adjust(to(path, "refuse"))
    await losing.wrote(event(2))

    assert '"event"' not in capfd.readouterr().out  # where the log is, too
    assert ["lost", "pin"] == [each["event"] for each in lines(path)]
    assert [2] == numbers(path)
