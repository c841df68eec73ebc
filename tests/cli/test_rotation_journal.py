"""The journal of a rotation: readable by people, whole at any time, for one command."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from hsm_kms.cli.rotation.journal import (
    MAX_EVENTS,
    JournalFile,
    Rotation,
    whoami,
)
from hsm_kms.cli.rotation.steps import STEP_NAMES
from hsm_kms.errors import ConfigError, HsmKmsError
from tests.harness.command_line import run

OLD, NEW = "a" * 26, "b" * 26


@pytest.fixture
def file(directory):
    """Provide the file of a journal that does not exist yet."""
    return JournalFile(directory / "rotation.json")


def begun():
    """Return the journal of a rotation that has just begun."""
    return Rotation(
        began="2026-11-21T13:44:47Z",
        old_key=OLD,
        nodes=["cp-1:9462"],
        method="migrate",
        resources=["secrets"],
        activate_in=600.0,
    )


def test_is_read_by_people(file):
    """The file has one member in each line, and says what it is and who did what."""
    rotation = begun()
    rotation.begin("generate", STEP_NAMES[1:])
    rotation.done("generate", f"{NEW} is pending")
    file.save(rotation)
    text = file.path.read_text()
    shown = json.loads(text)

    assert f'\n  "old_key": "{OLD}",\n' in text
    assert text.endswith("}\n")
    assert "`hsm-kms rotation resume` continues it" in shown["note"]
    assert f"generate: done: {NEW} is pending" == shown["events"][-1]["what"]
    assert {whoami()} == {each["by"] for each in shown["events"]}
    assert 0o600 == file.path.stat().st_mode & 0o777
    assert rotation == file.load()


def test_stays_small():
    """Of many events the latest are kept."""
    rotation = begun()
    for number in range(MAX_EVENTS + 5):
        rotation.tell(f"event {number}")

    assert MAX_EVENTS == len(rotation.events)
    assert f"event {MAX_EVENTS + 4}" == rotation.events[-1].what


def test_step_that_is_done_again():
    """If a step must be done again, so must all later ones; its beginning is kept."""
    rotation = begun()
    assert rotation.done("switch", "all use it")
    assert not rotation.done("switch", "all use it still")
    rotation.done("verify", "well")
    began = rotation.steps["switch"].began
    rotation.begin("switch", ["verify"])

    assert ["switch"] == list(rotation.steps)
    assert (began, None) == (
        rotation.steps["switch"].began,
        rotation.steps["switch"].done,
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{}", "is not the journal of a rotation"),
        ("no JSON", "is not the journal of a rotation"),
        (None, "has version 2, not 1"),
    ],
)
def test_another_file(file, text, cause):
    """A file that is no journal of this version is refused."""
    if text is None:
        rotation = begun()
        rotation.version = 2
        file.save(rotation)
    else:
        file.path.write_text(text)

    with pytest.raises(ConfigError, match=cause):
        file.load()


def test_cannot_be_written(directory):
    """A journal that cannot be written ends the command, with the file and a cure."""
    file = JournalFile(directory / "missing" / "rotation.json")

    with pytest.raises(HsmKmsError, match="cannot be written: No such file") as error:
        file.save(begun())
    assert "give another file with --journal" == error.value.hint
    with pytest.raises(HsmKmsError, match="cannot be locked: No such file"):
        file.alone().__enter__()


def hold(file, held, ended):
    """Hold the lock until told to end."""
    with file.alone():
        held.set()
        ended.wait()


def test_one_command_at_a_time(file):
    """While a process holds the lock, another one is refused; its death ends that."""
    context = multiprocessing.get_context("fork")
    held, ended = context.Event(), context.Event()
    assert not file.in_use()
    process = context.Process(target=hold, args=(file, held, ended))
    process.start()
    held.wait()
    try:
        assert file.in_use()
        with pytest.raises(HsmKmsError, match="another `hsm-kms rotation` command"):
            file.alone().__enter__()
    finally:
        process.kill()
        process.join()
    assert not file.in_use()
    with file.alone():
        assert file.in_use()


def test_set_aside(file):
    """The journal of an earlier rotation is kept under the time when it began."""
    rotation = begun()
    file.save(rotation)
    file.progress.write_text("{}")
    kept = file.set_aside(rotation)

    assert "rotation-20261121T134447Z.json" == kept.name
    assert rotation == JournalFile(kept).load()
    assert (None, False) == (file.load(), file.progress.exists())


def test_status(file, shared_server):
    """`rotation status` reads the journal alone: state, steps, and what comes next."""
    command = ("rotation", "status", "--config", shared_server.config_file)
    command += ("--journal", file.path)
    none = run(*command)
    assert (0, f"no rotation has begun: {file.path} does not exist\n") == (
        none.returncode,
        none.stdout,
    )
    assert "none" == json.loads(run(*command, "-o", "json").stdout)["state"]

    rotation = begun()
    rotation.new_key = NEW
    rotation.done("generate", f"{NEW} is pending")
    rotation.begin("switch", STEP_NAMES[2:])
    file.save(rotation)
    killed = run(*command)
    assert 1 == killed.returncode
    assert killed.stdout.startswith("rotation: stopped, began at 2026-11-21T13:44:47Z")
    assert "\nswitch      stopped  20" in killed.stdout
    assert "\nretire      to do    -" in killed.stdout
    given = f"--config {shared_server.config_file} --journal {file.path}"
    assert (
        f": killed\nnext: run `hsm-kms rotation resume {given}`, which continues with "
        in killed.stdout
    )
    with file.alone():
        running = run(*command)
    assert 0 == running.returncode
    assert running.stdout.endswith("next: wait for switch, then settle\n")

    rotation.stopped = "cp-1: the token is away"
    file.save(rotation)
    shown = json.loads(run(*command, "-o", "json").stdout)
    assert ("stopped", rotation.stopped) == (shown["state"], shown["stopped"])
    assert [OLD, NEW] == [shown["old_key"], shown["new_key"]]
    assert list(STEP_NAMES) == [each["step"] for each in shown["steps"]]

    rotation.finished = "2026-11-21T14:00:00Z"
    file.save(rotation)
    finished = run(*command)
    assert 0 == finished.returncode
    undo = f"hsm-kms keys retire --undo {OLD} --config {shared_server.config_file}"
    assert f"next: nothing; `{undo}`" in finished.stdout
