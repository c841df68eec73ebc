"""Test hardening from outside, in separate processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.harness.processes import alive
from tests.harness.wait import patient, wait_for

HARDENED = """
    import json, os, resource
    from hsm_kms.hardening import harden_process, is_dumpable

    before = is_dumpable()
    harden_process()
    descriptor = os.open("made", os.O_CREAT | os.O_WRONLY, 0o666)
    print(json.dumps({
        "before": before,
        "after": is_dumpable(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "mode": os.fstat(descriptor).st_mode & 0o777,
        "owner": os.stat("/proc/self/mem").st_uid,
    }))
"""

# Starts a child that asks to die with it, says both process ids, and lives on.
PARENT = """
    import os, subprocess, sys, time

    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())],
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
    time.sleep(60)
"""

CHILD = """
    import sys, time
    from hsm_kms.pdeathsig import die_with_parent

    die_with_parent(int(sys.argv[1]))
    print("ready", flush=True)
    time.sleep(60)
"""


def run(code, *args, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
        **options,
    )


def test_hardened_process_leaves_nothing_behind(tmp_path):
    """A hardened process writes no core, is not traceable, and creates files 0600."""
    told = json.loads(run(HARDENED, cwd=tmp_path).stdout)

    assert {
        "before": True,
        "after": False,
        "core": [0, 0],
        "mode": 0o600,
        "owner": 0,
    } == told


def test_aborted_process_leaves_no_core(tmp_path):
    """A crash of a hardened process writes no core file even if they are enabled."""
    code = """
        import os, resource
        from hsm_kms.hardening import harden_process
        harden_process()
        os.abort()
    """
    ended = run(code, cwd=tmp_path)

    assert -signal.SIGABRT == ended.returncode
    assert [] == list(tmp_path.iterdir())


def test_child_dies_with_its_parent():
    """A killed server leaves no worker that still holds a session and a login."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), textwrap.dedent(CHILD)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()

    wait_for(lambda: not alive(child))


def test_orphan_exits_at_once():
    """A process whose parent has gone before it could ask exits at once."""
    ended = run(CHILD, "1" if os.getpid() != 1 else "2")

    assert (1, "") == (ended.returncode, ended.stdout)


EVERY_COMMAND = """
    import json, os, resource, sys

    seen = []

    def watch(event, given):
        if event == "import" and given[0] in {"click", "hsm_kms.cli", "yaml"}:
            seen.append([given[0], is_dumpable()])

    from hsm_kms import start
    from hsm_kms.hardening import is_dumpable

    sys.addaudithook(watch)
    sys.argv = ["hsm-kms", *sys.argv[1:]]
    try:
        start.main()
    finally:
        umask = os.umask(0)
        core = resource.getrlimit(resource.RLIMIT_CORE)
        told = {"seen": seen, "after": is_dumpable(), "umask": umask, "core": core}
        print(json.dumps(told), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("--version",),
        ("status", "--socket", "/nowhere"),
        ("check", "--config", "/nowhere"),
        ("keys", "list", "--config", "/nowhere"),
        ("config", "show", "--config", "/nowhere"),
    ],
)
def test_every_command_is_hardened_first(command):
    """A command is hardened before the command line itself is imported."""
    told = json.loads(run(EVERY_COMMAND, *command).stderr.splitlines()[-1])

    assert ["hsm_kms.cli", False] == told["seen"][0]
    assert [] == [name for name, dumpable in told["seen"] if dumpable]
    assert (False, 0o077, [0, 0]) == (told["after"], told["umask"], told["core"])


def test_entry_points():
    """The installed program and `python -m hsm_kms` start hardened."""
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    # The probe holds no secret and is not hardened: it would cost more than it does.
    scripts = project["scripts"]
    assert "hsm_kms.healthcheck:main" == scripts.pop("hsm-kms-healthcheck")
    assert {"hsm-kms": "hsm_kms.start:main"} == scripts
    assert "hsm_kms.start" in (root / "hsm_kms/__main__.py").read_text()
