"""The nonce budget over restarts, crashes, broken disks and damaged files."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.records import NoncesFile
from hsm_kms.wrapping.nonce_budget import BLOCK
from tests.harness.processes import in_namespace, namespace_prefix
from tests.harness.wait import until
from tests.unit.keys.key_samples import A, B, C
from tests.unit.wrapping.nonce_rig import (
    IN_MEMORY,
    NO_MORE,
    OFTEN,
    UNKNOWN,
    budget_on,
    events,
    kept,
    settled,
    spend,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path):
    """Return a new state directory."""
    return StateDir(tmp_path / "state").open()


CHILD = """
import asyncio, json, os, resource, signal, subprocess, sys
from pathlib import Path
from structlog.testing import capture_logs
from hsm_kms.wrapping.nonce_budget import NonceBudget
from hsm_kms.state_dir.directory import StateDir

KEY = "a" * 26

async def main():
    state = StateDir(Path(sys.argv[1])).open()
    budget = NonceBudget(state, retry=0.02)
    began = budget.used.get(KEY, 0)
    budget.spend(KEY)
    if budget._reserving:
        await asyncio.wait([budget._reserving], timeout=60)
    BREAK
    for _ in range(20_000):
        budget.spend(KEY)
        if _ % 5_000 == 0:
            await asyncio.sleep(0.05)
    END
    await budget.close()
    found = {"began": began, "used": budget.used[KEY], "kept": state.nonces().counts}
    found["left"] = [p.name for p in state.path.iterdir() if p.suffix == ".tmp"]
    return found

with capture_logs() as logs:
    found = asyncio.run(main())
print(json.dumps(found | {"logs": [log["event"] for log in logs]}))
"""


def run_child(path, *, trouble="pass", end="pass", prefix=()):
    """Run a process that counts 20,001 wraps."""
    code = CHILD.replace("BREAK", trouble).replace("END", end)
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def told_by(child):
    """Return what that process reported at its end."""
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_over_processes(state):
    """A process goes on counting where the one before it ended."""
    first, second = (told_by(run_child(state.path)) for _ in range(2))

    assert (0, 20_001) == (first["began"], first["used"])
    assert (20_001, 40_002) == (second["began"], second["used"])
    assert {A: 40_002} == kept(state)
    assert [] == first["logs"] + second["logs"]


def test_killed(state):
    """A killed process adds at most a block, and forgets no wrap."""
    written = "while budget._reserving: await asyncio.sleep(0.01)"
    child = run_child(
        state.path, end=f"{written}\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert -signal.SIGKILL == child.returncode

    assert 20_001 <= kept(state)[A] <= 20_001 + BLOCK


READ_ONLY = 'subprocess.run(["mount", "-o", "remount,bind,ro", state.path], check=True)'


FULL = """
    for size in (1 << 20, 4096):
        try:
            (state.path / f"filler{size}").write_bytes(bytes(size))
        except OSError:
            pass
"""


@pytest.mark.parametrize(
    ("trouble", "size"), [(READ_ONLY, "1m"), (FULL, "64k")], ids=["read-only", "full"]
)
def test_unwritable(state, trouble, size):
    """If the disk is read-only or full, wraps count in memory, with one warning."""
    prefix = namespace_prefix()
    if prefix is None:
        pytest.skip("no mount namespace can be made here")
    mount = f'mount -t tmpfs -o size={size},mode=0700 tmpfs "$4"'
    found = told_by(
        run_child(state.path, trouble=trouble, prefix=in_namespace(prefix, mount))
    )

    assert 20_001 == found["used"]
    assert {A: 1 + BLOCK} == found["kept"]
    assert [IN_MEMORY] == found["logs"]
    assert [] == found["left"]


def test_no_room_for_files(state):
    """At a file size limit wraps are counted in memory, and that is logged once."""
    trouble = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    found = told_by(run_child(state.path, trouble=trouble))

    assert (20_001, {A: 1 + BLOCK}) == (found["used"], found["kept"])
    assert [IN_MEMORY] == found["logs"]


async def test_written_once_it_can_be(state):
    """Counts are written as soon as that is possible again, and may fail again."""
    budget = budget_on(state, retry=0.01)
    with capture_logs() as logs:
        state.path.chmod(0o777)  # others could change it: it is not used
        spend(budget, 60)
        await until(lambda: logs)
        assert [IN_MEMORY] == events(logs)
        state.path.chmod(0o700)
        await settled(budget)
        assert {A: 76} == kept(state)

        state.path.chmod(0o777)
        spend(budget, 10)
        await until(lambda: 2 == len(logs))
        await budget.close()
    assert "other users can write to it" in logs[1]["error"]
    assert [IN_MEMORY] * 2 == events(logs)
    state.path.chmod(0o700)
    assert {A: 76} == kept(state)


class FsyncFails(StateDir):
    """A state directory in which a write takes effect and then fails."""

    def save_nonces(self, file):
        super().save_nonces(file)
        with self._writing():
            raise OSError(5, "Input/output error")


async def test_failed_after_it_took_effect(tmp_path):
    """Counts that this process wrote itself do not count twice."""
    state = FsyncFails(tmp_path / "state").open()
    budget = budget_on(state, retry=0.001)
    with capture_logs():
        spend(budget, 1)
        for number in range(2, 10):
            await asyncio.sleep(0.01)
            spend(budget, 1)
            assert {A: number} == budget.used
        await budget.close()

    assert {A: 9} == kept(state)


async def test_mounted_later(state, tmp_path):
    """The counts in a state directory that is mounted later are added."""
    before = budget_on(state)
    spend(before, 40)
    spend(before, 2, B)
    await before.close()
    state.path.rename(tmp_path / "elsewhere")
    budget = budget_on(state, retry=0.01)
    with capture_logs() as logs:
        spend(budget, 5)
        spend(budget, 1, C)
        await until(lambda: logs)  # the write failed
    (tmp_path / "elsewhere").rename(state.path)
    await settled(budget)
    assert {A: 45, B: 2, C: 1} == budget.used
    assert {A: 45 + 16, B: 2, C: 1 + 16} == kept(state)
    await budget.close()

    assert {A: 45, B: 2, C: 1} == kept(state)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
async def test_damaged_while_running(state, damage):
    """A running process restores the counts of a file that is lost or damaged."""
    state.save_nonces(NoncesFile(version=1, counts={A: 40, B: 7}, others=3))
    budget = budget_on(state)
    damage(state.path / "nonces.json")
    spend(budget, 1)
    await budget.close()

    assert {A: 41, B: 7} == kept(state)
    assert 3 == state.nonces().others


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "{}",
        '{"version": 1, "counts": {}}',
        '{"version": 2, "counts": {}, "others": 0}',
        '{"version": 1, "counts": {"A": 1}, "others": 0}',
        '{"version": 1, "counts": {}, "others": -1}',
        '{"version": 1, "counts": {}, "others": 4294967297}',
        "[" * 60_000,
    ],
    ids=[
        "empty",
        "cut",
        "nothing",
        "field missing",
        "version 2",
        "fingerprint",
        "negative",
        "too many",
        "deep",
    ],
)
async def test_damaged(state, damage):
    """If the file is damaged, every key counts as near its limit."""
    (state.path / "nonces.json").write_text(damage)
    with capture_logs() as logs:
        budget = budget_on(state)
        assert budget.is_low(A)
        spend(budget, 99)
        assert not budget.is_spent(A)
        spend(budget, 1)
        assert budget.is_spent(A)
        await budget.close()
    assert [UNKNOWN, OFTEN, NO_MORE] == events(logs)
    assert "is not a state file of version 1" in logs[0]["error"]
    with capture_logs() as logs:
        later = budget_on(state)
    assert [] == logs

    assert {A: 200} == later.used
    assert later.is_low(B), "still not known"


async def test_not_readable(state):
    """A file that cannot be read does not count as missing."""
    (state.path / "nonces.json").mkdir()
    with capture_logs() as logs:
        budget = budget_on(state)
        spend(budget, 1)
        await budget.close()

    assert budget.is_low(B)
    assert [UNKNOWN, OFTEN, IN_MEMORY] == events(logs)


async def test_a_bug_is_told_and_does_no_harm(state):
    """A fingerprint that cannot be stored is logged as a bug, and is counted."""
    budget = budget_on(state)
    with capture_logs() as logs:
        spend(budget, 5, "no fingerprint")
        await until(lambda: logs)
        await budget.close()

    assert {"no fingerprint": 5} == budget.used
    assert {"bug while wraps were reserved"} == set(events(logs))
