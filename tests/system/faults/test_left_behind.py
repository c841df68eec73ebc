"""Processes that a module leaves behind: what they hold, and who waits for them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hsm_kms.token.process import Worker
from tests.harness import command_line
from tests.harness.one_worker import configure
from tests.harness.plugin import code_of
from tests.harness.processes import alive, open_files
from tests.harness.wait import SECONDS, until, wait_for

LONG = 30_000  # milliseconds


def children_of(pid):
    """Children of any thread of a process, by process id: the name of the program."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text(errors="replace").rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == pid:
            found[int(stat.parent.name)] = name.partition("(")[2]
    return found


def sockets_of(pid):
    """Sockets, pipes and files that a process holds beside its standard ones."""
    return [each for number, each in open_files(pid).items() if number > 2]


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_worker_with_a_child_is_killed(make_rig, shim, how):
    """The end of a worker is seen although a child of the module lives on."""
    rig = make_rig(token={"workers": 1, "call_timeout": "30s"})
    rig.start()
    rig.well()
    (worker,) = rig.workers()
    shim.set(f"C_Encrypt count=1 {how}={LONG}")
    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"dek"))
    wait_for(lambda: shim.acted("C_Encrypt"))
    shim.clear()
    (child,) = wait_for(lambda: children_of(worker))
    if how == "exec":
        wait_for(lambda: children_of(worker)[child] == "sleep")
        # The loader of the program has its libraries open for a moment.
        wait_for(lambda: not sockets_of(child))
        assert alive(child)  # a dead one holds nothing

    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: rig.ends("lost") == 1)
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    rig.well()
    assert rig.plugin.encrypt(b"dek", timeout=SECONDS).ciphertext


async def test_typed_pin_is_not_inherited(hsm, shim):
    """The descriptor of a PIN that was typed in is not inherited either."""
    pin = os.memfd_create("pin", os.MFD_CLOEXEC)
    worker = await Worker.spawn(0, {**hsm.env, **shim.env}, pass_fds=(pin,))
    os.close(pin)
    try:
        shim.set(f"C_Initialize count=1 exec={LONG}")
        await worker.configure(configure(module=str(shim.module)))
        await until(lambda: "sleep" in children_of(worker.pid).values())
        (child,) = children_of(worker.pid)
        await until(lambda: not sockets_of(child))
        assert alive(child)
        os.kill(child, signal.SIGKILL)
    finally:
        await worker.leave()


def test_reaped_by_pid_1(make_rig, shim, monkeypatch):
    """As PID 1 of a container the server waits for what its modules left behind."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*unshare, "true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no PID namespace can be made here")
    rig = make_rig(token={"workers": 1})
    whole = (*unshare, *command_line.HSM_KMS)
    monkeypatch.setattr(command_line, "HSM_KMS", whole)
    rig.start(spawn=True)
    rig.well()
    (server,) = children_of(rig.plugin.process.pid)
    (worker,) = children_of(server)
    shim.set("C_Encrypt count=3 fork=1")
    for _ in range(3):
        rig.plugin.encrypt(b"dek")
    wait_for(lambda: shim.acted("C_Encrypt") == 3)
    shim.clear()
    wait_for(lambda: len(children_of(worker)) == 3)
    os.kill(worker, signal.SIGKILL)

    wait_for(lambda: worker not in children_of(server))
    wait_for(lambda: len(children_of(server)) == 1)
    rig.well()
    assert alive(*children_of(server))
    assert [] == [line for line in rig.plugin.log().splitlines() if "child" in line]
    os.kill(server, signal.SIGTERM)  # unshare itself ignores the signal
    assert 0 == rig.plugin.wait()
