"""Lines that a full disk cuts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hsm_kms.audit.target import AuditFile
from tests.unit.audit.audit_rig import audit_path


@pytest.fixture
def path(tmp_path):
    """The audit file, which is missing."""
    return audit_path(tmp_path)


CUT = """
import resource, signal, sys
from pathlib import Path
from hsm_kms.audit.target import AuditFile, CutError, Stream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = Stream() if len(sys.argv) < 2 else AuditFile(Path(sys.argv[1]))
file.write(b"one\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    file.write(b"two\\nthree\\n")
except CutError as cut:
    print(cut.written, cut.error, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
"""


def test_cut_lines(path):
    """A line that a full disk cuts is ended before the next, by whoever writes that."""
    for again in (b"two\nthree\n", b"four\n"):
        path.unlink(missing_ok=True)
        code = CUT + f"file.write({again!r})\n"
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=True,
        )

        assert run.stderr.startswith("6 cannot write the audit file")
        assert b"one\ntwo\nth\n" + again == path.read_bytes()
    with path.open("ab") as file:
        file.write(b"cut")
    AuditFile(path).write(b"five\n")
    assert path.read_bytes().endswith(b"four\ncut\nfive\n")


def test_cut_lines_on_stdout(path):
    """So it is where stdout of the server is a file."""
    with path.open("wb") as stdout:
        run = subprocess.run(
            [sys.executable, "-c", CUT + "file.write(b'four\\n')"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )

    assert run.stderr.startswith("6 cannot write audit records to stdout: File too")
    assert b"one\ntwo\nth\nfour\n" == path.read_bytes()
