"""Test that an interrupted `hsm-kms migrate` can be resumed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from hsm_kms.migrate.listing import PAGE
from tests.cli import kubectl_stub
from tests.cli.kubectl_stub import LISTS, status
from tests.cli.migrating import TEXT, Migrating
from tests.harness.processes import alive, children_of
from tests.harness.wait import patient, wait_for

# No smaller page can be listed either.
UNLISTED = {
    f"GET {LISTS + number}": {"code": 500, "body": status(500, "Internal", "no KMS")}
    for number in range(2, 20)
}
# The first object of the second page that is put off, and all tries for it.
HELD = PAGE + 11
PUT_OFF = {
    f"PUT {number}": {"code": 429, "headers": {"Retry-After": 30}}
    for number in range(HELD, HELD + 7)
}
RESUME = "run the same command again to resume"
SLOWLY = ("--rate", "0.1")  # the second one is ten seconds behind the first


@pytest.fixture
def migrating(directory):
    return Migrating(directory)


def test_resumes(migrating):
    """After SIGKILL, the next run resumes with the page where the first stopped."""
    progress = migrating.directory / "progress"
    migrating.play(objects=3 * PAGE, faults=PUT_OFF)
    first = migrating.start("--resume", str(progress))
    wait_for(lambda: len(migrating.requests("PUT")) >= HELD)
    first.kill()
    first.communicate()
    done = len(migrating.requests("PUT"))
    migrating.play(objects=3 * PAGE)

    result = migrating.run("--resume", str(progress))

    assert f"{PAGE} objects done, continuing with secrets" in result.stderr
    assert f"secrets: {3 * PAGE} objects" in result.stdout
    assert f"PUT {kubectl_stub.NAMESPACE}/s{PAGE}" == migrating.requests("PUT")[done]
    assert not progress.exists()


def test_interrupted(migrating, monkeypatch):
    """Ctrl-C, SIGTERM or SIGHUP prints progress and hint, and leaves nothing behind."""
    temporary = migrating.directory / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        progress = migrating.directory / f"progress-{number}"
        process = migrating.start("--resume", str(progress), *SLOWLY)
        wait_for(lambda: migrating.requests("PUT"))
        kubectl = children_of(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=patient())

        assert "" == out
        assert "hsm-kms: interrupted after " in err
        assert "hint: run the same command again to resume" in err
        assert 128 + number == process.returncode
        assert progress.exists()
        assert TEXT not in progress.read_text()
        assert [] == [pid for pid in kubectl if alive(pid)]
        assert [] == list(temporary.iterdir())
        migrating.log.unlink()


def test_nohup(migrating):
    """Under nohup, the end of the terminal does not end the migration."""
    migrating.play(objects=3)
    command = ["nohup", *migrating.command("--rate", "1")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: migrating.requests("PUT"))
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=patient())

    assert 0 == process.returncode, err
    assert "secrets: 3 objects" in out


def test_killed_with_kubectl(migrating):
    """kubectl, which has the user's credentials, ends with `migrate` in any case."""
    process = migrating.start(*SLOWLY)
    wait_for(lambda: migrating.requests("PUT"))
    kubectl = children_of(process.pid)

    process.kill()
    process.communicate()

    assert len(kubectl) >= 1
    wait_for(lambda: not any(map(alive, kubectl)))


def test_stops_and_says_where(migrating):
    """If the API server fails half-way, the error says how far it came."""
    migrating.play(objects=PAGE + 1, faults=UNLISTED)

    result = migrating.run("--resume", str(migrating.directory / "progress"))

    cause = "cannot list secrets: HTTP 500 Internal"
    assert [
        f"hsm-kms: stopped after {PAGE} objects: {cause}",
        f"hint: read the log of the API server; then {RESUME}",
    ] == result.stderr.splitlines()


@pytest.mark.parametrize(
    "other",
    [
        {"server": "https://another.example"},
        {"namespace": "ns"},
        {"resource": "configmaps"},
    ],
)
def test_progress_of_another_migration(migrating, other):
    """A progress file of another migration is refused."""
    progress = migrating.directory / "progress"
    migrating.play(objects=PAGE + 1, faults=UNLISTED)
    assert 1 == migrating.run("--resume", str(progress)).returncode
    left = progress.read_bytes()
    server = other.pop("server", None)
    migrating.play(**({"server": server} if server else {}))
    options = [text for name, value in other.items() for text in (f"--{name}", value)]

    result = migrating.run("--resume", str(progress), *options)

    assert "belongs to another cluster, namespace or list" in result.stderr
    assert 2 == result.returncode
    assert left == progress.read_bytes()


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff", b'{"scope": 1}'])
def test_progress_is_garbage(migrating, garbage):
    """A corrupt progress file is refused and not overwritten."""
    progress = migrating.directory / "progress"
    progress.write_bytes(garbage)

    result = migrating.run("--resume", str(progress))

    said = f"{progress} is not a progress file of --resume; give the name of a new file"
    assert f"hsm-kms: {said}\n" == result.stderr
    assert 2 == result.returncode
    assert garbage == progress.read_bytes()


def test_progress_cannot_be_written(migrating):
    """An unwritable progress file is reported before anything is written."""
    result = migrating.run("--resume", "/nowhere/progress")

    assert "/nowhere/progress cannot be written: No such file" in result.stderr
    assert [] == migrating.requests("PUT")


def test_no_core_dump_with_secrets_in_it(migrating):
    """The process, which holds Secrets, writes no core file."""
    process = migrating.start(*SLOWLY)
    wait_for(lambda: migrating.requests("PUT"))
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    process.terminate()
    process.communicate()

    assert "Max core file size        0                    0" in limits
