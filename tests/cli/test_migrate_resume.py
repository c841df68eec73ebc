"""`hsm-kms migrate` that is interrupted, and taken up again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hsm_kms.migrate.rewrite import PAGE
from tests.cli import kubectl_stub
from tests.cli.kubectl_stub import LISTS, status
from tests.cli.migrating import TEXT, Migrating
from tests.harness.processes import alive, children_of
from tests.harness.wait import patient, wait_for

SLOWLY = ("--rate", "0.1")  # the second one is ten seconds behind the first


@pytest.fixture
def migrating(directory):
    return Migrating(directory)


def test_resumes(migrating):
    """After a SIGKILL the next run begins with the page where that one ended."""
    progress = migrating.directory / "progress"
    migrating.play(objects=3 * PAGE)
    first = migrating.start("--resume", str(progress), "--rate", "300")
    wait_for(lambda: len(migrating.requests("PUT")) > PAGE + 10)
    first.kill()
    first.communicate()
    done = len(migrating.requests("PUT"))

    result = migrating.run("--resume", str(progress))

    assert f"{PAGE} objects done, next are secrets" in result.stderr
    assert f"secrets: {3 * PAGE} objects" in result.stdout
    assert f"PUT {kubectl_stub.NAMESPACE}/s{PAGE}" == migrating.requests("PUT")[done]
    assert not progress.exists()


def test_interrupted(migrating):
    """Ctrl-C or SIGTERM: how far it came, what to do, and no kubectl left behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        progress = migrating.directory / f"progress-{number}"
        process = migrating.start("--resume", str(progress), *SLOWLY)
        wait_for(lambda: migrating.requests("PUT"))
        kubectl = children_of(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=patient())

        assert "" == out
        assert "hsm-kms: interrupted after " in err
        assert "hint: the same command again goes on from there" in err
        assert 1 == process.returncode
        assert progress.exists()
        assert TEXT not in progress.read_text()
        assert [] == [pid for pid in kubectl if alive(pid)]
        migrating.log.unlink()


def test_killed_with_kubectl(migrating):
    """Whatever ends it ends kubectl, which holds the user's credentials."""
    process = migrating.start(*SLOWLY)
    wait_for(lambda: migrating.requests("PUT"))
    kubectl = children_of(process.pid)

    process.kill()
    process.communicate()

    assert len(kubectl) >= 1
    wait_for(lambda: not any(map(alive, kubectl)))


def test_stops_and_says_where(migrating):
    """An API server that fails in the middle: what was done, and how to go on."""
    fault = {"code": 500, "body": status(500, "InternalError", "no KMS")}
    migrating.play(objects=PAGE + 1, faults={f"GET {LISTS + 2}": fault})

    result = migrating.run("--resume", str(migrating.directory / "progress"))

    cause = "the API server does not list secrets: 500 no KMS"
    assert [
        f"hsm-kms: stopped after {PAGE} objects: {cause}",
        "hint: the same command again goes on from there",
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
    """It would leave out what the other one had done: refused."""
    progress = migrating.directory / "progress"
    fault = {"code": 500, "body": status(500, "InternalError")}
    migrating.play(objects=PAGE + 1, faults={f"GET {LISTS + 2}": fault})
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
    """Not taken for the beginning, and not overwritten."""
    progress = migrating.directory / "progress"
    progress.write_bytes(garbage)

    result = migrating.run("--resume", str(progress))

    assert f"{progress} is not what --resume left" in result.stderr
    assert 2 == result.returncode
    assert garbage == progress.read_bytes()


def test_progress_cannot_be_written(migrating):
    """Said before anything is written."""
    result = migrating.run("--resume", "/nowhere/progress")

    assert "/nowhere/progress cannot be written: No such file" in result.stderr
    assert [] == migrating.requests("PUT")


def test_no_core_dump_with_secrets_in_it(migrating):
    """The process holds Secrets: it leaves no core file."""
    process = migrating.start(*SLOWLY)
    wait_for(lambda: migrating.requests("PUT"))
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    process.terminate()
    process.communicate()

    assert "Max core file size        0                    0" in limits
