"""What docs/troubleshooting.md says that kube-apiserver prints, printed by one.

Each test makes one of the faults on that page, and wants every line that the page
shows for it, word for word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.command_line import run
from tests.harness.wait import patient
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.page import PAGE, shown
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import NAMES, NAMESPACE, encryption, running_world, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.e2e.binaries import Binaries
    from tests.system.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SOCKET = "/run/hsm-kms/kms.sock"  # on the page
NOTICED = 90.0  # seconds; the API server believes a good Status for 20
NOBODY, GROUP = 65534, 10002
READYZ = "/readyz/kms-providers"


@pytest.fixture(scope="module")
def world(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[World]:
    """A cluster with the Secrets that `Seen` asks for.

    One that a test made with another key or scope would keep it from becoming ready.
    """
    with running_world(binaries, new_folder()) as world:
        world.api.start(world.encryption("v2"))
        world.create("one", "text")
        world.create("two", "text")
        yield world


@pytest.fixture
def well(world: World) -> Iterator[World]:
    """The same, made whole after the test."""
    yield world
    world.plugin.configure(apis={"v2": {"enabled": True}}, scope="")
    world.plugin.restart()
    world.api.restart(world.encryption("v2"))


class Seen:
    """Everything that the API server answers, and logs from now on.

    Args:
        world: The cluster.
        begin: Where in the log to begin; at its end if None.
    """

    def __init__(self, world: World, begin: int | None = None) -> None:
        self._world = world
        self._begin = world.api.log_size() if begin is None else begin

    def text(self) -> str:
        """Return it, with the names that the page has."""
        api = self._world.api
        answers = [api.get(path)[1].decode() for path in (READYZ, "/readyz?verbose")]
        for status, body in (
            api.get(f"{NAMESPACE}/one"),
            api.get(NAMESPACE),
            api.request("POST", NAMESPACE, secret("two", "text")),
        ):
            answer = json.loads(body)
            if status != 200 and "message" in answer:
                answers.append(f"Error from server: {answer['message']}")
        answers.append(api.logged(self._begin))
        return plain("\n".join(answers), self._world)

    def has(self, lines: list[str]) -> None:
        """Wait until every line was printed."""
        missing: list[str] = []

        def printed() -> bool:
            text = self.text()
            missing[:] = [line for line in lines if line not in text]
            return not missing

        try:
            wait_for("lines", printed, timeout=NOTICED, every=1)
        except TimeoutError:
            pytest.fail(f"not printed: {missing}; printed: {self.text()[:5_000]}")


def plain(text: str, world: World) -> str:
    """Return what was printed as it would be with the names of the page."""
    return (
        text.replace(str(world.plugin.socket), SOCKET)
        .replace(f"Provider {NAMES['v2']} is", "Provider hsm-kms is")
        .replace('\\"', '"')
    )


def changed(world: World, file: str, **kms: Any) -> Path:
    """Write an EncryptionConfiguration with these settings; None leaves one out."""
    whole: Any = encryption(["v2"], world.plugin.socket)
    provider = whole["resources"][0]["providers"][0]
    settings = provider["kms"] | kms
    provider["kms"] = {key: each for key, each in settings.items() if each is not None}
    path = world.folder / file
    path.write_text(json.dumps(whole))
    return path


def test_no_such_file(well):
    """Without the plugin there is no socket, also for an API server that restarts."""
    seen = Seen(well)
    well.plugin.stop()
    seen.has(shown("No such file or directory"))
    seen = Seen(well)
    well.api.restart(ready=False)
    seen.has(shown("After a restart of kube-apiserver"))


def test_connection_refused(well):
    """Nobody listens on a socket that a killed plugin left."""
    seen = Seen(well)
    well.plugin.stop()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(well.plugin.socket))
    seen.has(shown("Connection refused"))
    well.plugin.socket.unlink()


def test_not_enabled(well):
    """A plugin that serves KMS v1 only does not know the methods of v2."""
    seen = Seen(well)
    well.plugin.configure(apis={"v2": {"enabled": False}})
    well.plugin.restart(ok=False)
    seen.has(shown("KMS v2 is not enabled"))


def test_other_name(well):
    """A provider that was renamed claims none of its values."""
    seen = Seen(well)
    well.api.restart(changed(well, "renamed.json", name="renamed"), ready=False)
    seen.has(shown("No matching prefix"))


def test_other_scope(well):
    """A value of another scope is not authentic."""
    seen = Seen(well)
    well.plugin.configure(scope="other")
    well.plugin.restart()
    well.api.restart(ready=False)
    seen.has(shown("Malformed or not authentic"))


def test_other_token(well, new_folder):
    """A plugin with another token does not hold the key."""
    seen = Seen(well)
    other = Plugin(new_folder() / "plugin")
    well.plugin.stop()
    other.configure(listen={"socket": str(well.plugin.socket)})
    other.start()
    well.api.restart(ready=False)
    seen.has(shown("The key is not on this node"))
    other.stop()


def test_token_away(well):
    """Status says the class of the cause while the token is away."""
    seen = Seen(well)
    with well.plugin.outage():
        seen.has(shown("The token is unavailable"))


@pytest.fixture
def unprivileged(well, new_folder):
    """An API server that is not root, in a group that the socket may be given."""
    well.api.stop()
    folder = new_folder()
    program = folder / "program"
    try:
        program.hardlink_to(well.binaries.kube_apiserver)
    except OSError:  # it is on another file system
        shutil.copy(well.binaries.kube_apiserver, program)
    as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}")
    command = shlex.join([*as_nobody, f"--groups={GROUP}", str(program)])
    wrapper = folder / "kube-apiserver"
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    wrapper.chmod(0o755)
    (folder / "certs").mkdir()
    os.chown(folder / "certs", NOBODY, NOBODY)
    for each in (folder, well.folder):
        each.chmod(0o711)
    binaries = dataclasses.replace(well.binaries, kube_apiserver=wrapper)
    api = ApiServer(binaries, well.etcd, folder)
    yield dataclasses.replace(well, folder=folder, api=api)
    api.stop()
    os.chown(well.plugin.socket.parent, 0, 0)
    well.plugin.configure(listen={"mode": "0600", "group": None})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become others")
def test_permission_denied(unprivileged):
    """An API server that is not root connects with the recipe of the page, not before.

    The recipe is a group of the socket and of its directory, and of both processes.
    `probe` says what it lacks, step by step.
    """
    plugin, api = unprivileged.plugin, unprivileged.api
    probe = ("probe", "--socket", plugin.socket, "--as-apiserver")
    plugin.socket.parent.chmod(0o700)
    api.start(unprivileged.encryption("v2"), ready=False)
    Seen(unprivileged, begin=0).has(shown("Permission denied"))
    shut = run(*probe, api.pid)
    assert f"may not enter the directory {plugin.socket.parent} (drwx" in shut.stdout

    os.chown(plugin.socket.parent, 0, GROUP)
    plugin.socket.parent.chmod(0o750)
    half = run(*probe, api.pid)
    assert f"may not connect to the socket {plugin.socket} (srw-------" in half.stdout
    plugin.configure(listen={"mode": "0660", "group": str(GROUP)})
    plugin.restart()
    wait_for("readiness", lambda: api.get(READYZ)[0] == 200, timeout=NOTICED)
    wait_for("text", lambda: unprivileged.read("one") == "text", timeout=NOTICED)
    right = run(*probe, api.pid)
    assert (0, 1, 1) == (right.returncode, shut.returncode, half.returncode), right


@pytest.mark.parametrize(
    ("heading", "changes"),
    [
        ("KMS v1 is off", {"apiVersion": None}),
        ("Invalid name", {"name": "a:b"}),
        ("Cache size", {"cachesize": 100}),
    ],
)
def test_does_not_start(well, heading, changes):
    """An API server refuses the configuration with the line of the page."""
    well.api.stop()
    path = changed(well, "refused.json", **changes)
    flags = [each for each in well.api.flags(path) if not each.startswith("--feature")]
    ended = subprocess.run(
        [well.binaries.kube_apiserver, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(NOTICED),
    )

    assert 1 == ended.returncode
    for line in shown(heading):
        assert line in plain(ended.stderr, well)


def test_every_block_is_made():
    """No block of lines on the page lacks a test in this folder."""
    blocks = re.findall(r"\n### (.*)\n\n```text\n", PAGE.read_text())
    files = Path(__file__).parent.glob("test_*.py")
    tests = "".join(file.read_text() for file in files)

    assert blocks
    assert [] == [heading for heading in blocks if f'"{heading}"' not in tests]
