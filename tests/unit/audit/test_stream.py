"""The audit stream: order, losses, rotation, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hsm_kms.audit.line import body_of
from hsm_kms.audit.stream import AuditStream
from hsm_kms.audit.writer import MOST_WAITING, RecordWriter
from hsm_kms.config.schema import Audit
from hsm_kms.errors import AuditError
from tests.harness.wait import until
from tests.unit.audit.audit_rig import audit_path, event, lines, numbers, parsed, to

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path):
    """The audit file, which is missing."""
    return audit_path(tmp_path)


async def test_order(path):
    """Records are in the file in the order in which they were made, and numbered."""
    audit = AuditStream(to(path))
    for number in range(3000):
        audit.record(event(number))
    await audit.close()

    assert list(range(3000)) == numbers(path)
    assert list(range(1, 3001)) == [each["seq"] for each in lines(path)]
    assert {(1, "serve", os.getpid())} == {
        (each["v"], each["source"], each["pid"]) for each in lines(path)
    }
    times = [each["time"] for each in lines(path)]
    assert sorted(times) == times


async def test_mode(path):
    """A new file has mode 0600, whatever the umask is."""
    umask = os.umask(0)
    try:
        audit = AuditStream(to(path))
        audit.record(event())
        await audit.close()
    finally:
        os.umask(umask)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


async def test_off():
    """If the audit is off nothing is recorded or refused, and no thread is started."""
    threads = threading.active_count()
    audit = AuditStream(Audit(on_error="refuse"))
    audit.record(event())
    await audit.wrote(event())
    audit.reopen()
    await audit.close()

    assert not audit.enabled
    assert (None, 0) == (audit.fault, audit.report.written)
    assert threads == threading.active_count()


async def test_refuse_waits_for_the_file(path):
    """With on_error: refuse, the record is in the file when the request goes on."""
    audit = AuditStream(to(path, "refuse"))
    for number in range(3):
        await audit.wrote(event(number))

        assert number == numbers(path)[-1]
    await asyncio.gather(*(audit.wrote(event(number)) for number in range(3, 50)))
    assert list(range(50)) == numbers(path)


async def test_lost_and_found(path):
    """While the file cannot be written records are lost, counted, and accounted for."""
    away = path.parent.with_name("away")
    path.parent.rename(away)
    audit = AuditStream(to(path, "refuse"))
    for number in range(3):
        with pytest.raises(AuditError, match="No such file or directory"):
            await audit.wrote(event(number))
    report = audit.report

    assert (0, 3, True) == (report.written, report.lost, report.refuses)
    assert "as root, run: install -d -m 0700" in report.error
    assert str(audit.fault) in report.error
    away.rename(path.parent)
    await until(lambda: audit.fault is None)  # by itself, without another record
    await audit.wrote(event(3))
    lost, after = lines(path)
    assert ("lost", 3, 4) == (lost["event"], lost["records"], lost["seq"])
    assert "No such file or directory" in lost["reason"]
    assert lost["since"] <= lost["time"]
    assert (3, 5) == (after["worker"], after["seq"])
    assert ("", 3, 2) == (audit.report.error, audit.report.lost, audit.report.written)


async def test_continue_goes_on(path):
    """With on_error: continue no request is refused, and no fault is reported."""
    path.mkdir()
    audit = AuditStream(to(path))
    await audit.wrote(event())
    await audit.close()

    assert None is audit.fault
    assert (1, True) == (audit.report.lost, bool(audit.report.error))


class Stuck:
    """A disk that does not answer until it is told to.

    Attributes:
        go_on: Lets it answer.
        entered: Set while it does not.
        written: What it got.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.entered = threading.Event()
        self.written = b""

    def write(self, data: bytes) -> None:
        """Wait, then keep the lines."""
        self.entered.set()
        self.go_on.wait()
        self.written += data

    def reopen(self) -> None:
        """Do nothing."""


async def test_bounded():
    """Behind a disk that hangs, so many records wait; those that follow are lost."""
    disk = Stuck()
    writer = RecordWriter(disk, "serve")
    body = body_of(event(), "serve")
    assert writer.put(body, None)
    await until(disk.entered.is_set)
    accepted = [writer.put(body, None) for _ in range(MOST_WAITING + 5)]

    assert [True] * MOST_WAITING + [False] * 5 == accepted
    assert (5, MOST_WAITING) == (writer.lost, writer.waiting)
    disk.go_on.set()
    await writer.flush()
    *_, last = disk.written.splitlines()
    assert MOST_WAITING + 1 + 1 == writer.written  # and a record `lost`
    assert f'"seq":{MOST_WAITING + 1 + 5 + 1},'.encode() in last
    assert None is writer.error


UNREAD = """
import asyncio
from hsm_kms.audit.stream import AuditStream
from hsm_kms.config.schema import Audit
from hsm_kms.errors import AuditError
from tests.harness.wait import until
from tests.unit.audit.audit_rig import event

async def main():
    audit = AuditStream(Audit(stdout=True, on_error="refuse"))
    try:
        while True:
            await audit.wrote(event())
    except AuditError as error:
        refused = error
    await until(lambda: audit.fault is not None)
    assert audit.report.error == audit.fault.sentence == refused.sentence
    assert audit.fault is audit.fault  # by which health sees that nothing has changed
    sys.stderr.write(refused.sentence)
    sys.stderr.flush()
    os.close(2)
    await until(lambda: audit.fault is None)  # once stdout is read
    await audit.wrote(event())
    os._exit(0)

import os, sys
asyncio.run(main())
"""


def test_a_reader_that_hangs():
    """With on_error: refuse a request does not wait forever, and says for what.

    As long as that lasts, it is a fault: requests would be refused although Status
    says ok.
    """
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.stderr.read()  # nobody reads stdout until then
        written = process.stdout.read()

    assert 0 == process.returncode
    assert "the audit record was not written within 2 s; see whether" in said
    assert len(written) > 4096
    assert 1 == parsed(written.splitlines()[0])["seq"]


async def test_rotated(path):
    """After SIGHUP, records go to the file that has the name then."""
    audit = AuditStream(to(path))
    audit.record(event(1))
    await audit.close()
    old = path.rename(path.with_suffix(".1"))
    audit.record(event(2))
    audit.reopen()
    audit.record(event(3))
    await audit.close()

    assert [1, 2] == numbers(old)
    assert [3] == numbers(path)


async def test_moved_away(path):
    """A file that is moved away without a signal is left within a second or so."""
    audit = AuditStream(to(path))
    audit.record(event(0))
    await audit.close()
    old = path.rename(path.with_suffix(".1"))
    sent = itertools.count(1)

    def again() -> bool:
        audit.record(event(next(sent)))
        return path.exists()

    await until(again)
    await audit.close()

    assert list(range(next(sent))) == numbers(old) + numbers(path)


async def test_another_file(path):
    """A changed setting takes effect between two records, and loses none."""
    other = path.with_name("other.jsonl")
    audit = AuditStream(to(path))
    audit.record(event(1))
    audit.adjust(to(other))
    audit.record(event(2))
    audit.adjust(Audit())
    audit.record(event(3))
    audit.adjust(to(path))
    audit.record(event(4))
    await audit.close()

    assert ([1, 4], [2]) == (numbers(path), numbers(other))


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda p: p.parent.chmod(0o770), "other users can write to it"),
        (lambda p: (p.touch(), p.chmod(0o620)), "other users can write to it"),
        (lambda p: p.symlink_to("/dev/null"), "Too many levels of symbolic links"),
        (os.mkfifo, "it is not a regular file"),
        (os.mkdir, "Is a directory"),
    ],
    ids=["directory", "file", "link", "pipe", "no file"],
)
async def test_what_is_not_trusted(path, spoil, cause):
    """What others can change, or is no file, is not used; the error says why."""
    spoil(path)
    audit = AuditStream(to(path, "refuse"))
    with pytest.raises(AuditError, match=cause) as raised:
        await audit.wrote(event())

    assert raised.value.hint
