"""Containers of an image by runc alone, as restricted as the static pod's.

The root file system is read-only, the user is the image's, no capability is left and
none can be gained. A folder of the test is mounted where the server keeps its state.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.system.node.images import Image

USER = 10001
STATE = "/var/lib/hsm-kms"
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")


def missing() -> str | None:
    """Say what keeps a container from being started here, None if nothing does."""
    return None if shutil.which("runc") else "runc is not installed"


class Unpacked(NamedTuple):
    """An image that is unpacked.

    Args:
        root: Its root file system.
        config: The configuration of the image, as docker and the kubelet read it.
        layers: How many layers the root file system was packed in.
    """

    root: Path
    config: dict[str, Any]
    layers: int


def unpack(image: Image, folder: Path) -> Unpacked:
    """Unpack the layers of an archive one over the other.

    Args:
        image: An image of one layer, or of layers that remove nothing.
        folder: A folder that is made for it.
    """
    blobs, root = folder / "blobs", folder / "root"
    root.mkdir(parents=True)
    with tarfile.open(image.archive) as archive:
        archive.extractall(blobs, filter="data")
    (manifest,) = json.loads((blobs / "manifest.json").read_text())
    for layer in manifest["Layers"]:
        subprocess.run(
            ["tar", "-C", root, "-xpf", blobs / layer, "--numeric-owner"], check=True
        )
    config = json.loads((blobs / manifest["Config"]).read_text())
    shutil.rmtree(blobs)
    return Unpacked(root, config, len(manifest["Layers"]))


class Container:
    """A container that runs, and its output.

    Args:
        folder: A folder that is made for it.
        unpacked: The image.
        arguments: What comes after the entry point; the image's own command if empty.
        state: The folder that is mounted for the state; a new one if None.
    """

    def __init__(
        self,
        folder: Path,
        unpacked: Unpacked,
        arguments: Sequence[str],
        state: Path | None = None,
    ) -> None:
        self._id = f"hsm-kms-test-{os.getpid()}-{folder.parent.name}-{folder.name}"
        self._runc = ["runc", "--root", str(folder / "runc")]
        self.state = state or folder / "state"
        self.log = folder / "log"
        folder.mkdir()
        if not state:
            self.state.mkdir(mode=0o700)
            os.chown(self.state, USER, USER)
        spec = _spec(unpacked, self.state, arguments)
        (folder / "config.json").write_text(json.dumps(spec))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._runc, "run", "--bundle", folder, self._id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Process id of PID 1 of the container, outside; 0 until it has one."""
        ended = self._call("state", self._id)
        return json.loads(ended.stdout)["pid"] if not ended.returncode else 0

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `kubectl exec` does."""
        return self._call("exec", self._id, *command)

    def kill(self, signal: str) -> None:
        """Send a signal to PID 1."""
        self._call("kill", self._id, signal).check_returncode()

    def wait(self, seconds: float) -> int:
        """Wait for the end, and return the exit code."""
        return self._process.wait(patient(seconds))

    def ended(self) -> bool:
        """Return True if the container has ended."""
        return self._process.poll() is not None

    def said(self) -> str:
        """Return what it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def remove(self) -> None:
        """Kill what is left of it."""
        self._call("delete", "--force", self._id)
        self._process.wait(patient(30))

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._runc, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(60),
        )


def _spec(unpacked: Unpacked, state: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the runtime specification of a container that runs an image."""
    config = unpacked.config["config"]
    user, group = map(int, config["User"].split(":"))
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": group},
            "args": [*config["Entrypoint"], *(arguments or config["Cmd"])],
            "env": config["Env"],
            "cwd": "/",
            "capabilities": {each: [] for each in _CAPABILITIES},
            "noNewPrivileges": True,
        },
        "root": {"path": str(unpacked.root), "readonly": True},
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=64k"),
            _mount("/dev/shm", "tmpfs", "shm", "nosuid", "nodev", "mode=1777"),  # noqa: S108
            _mount(STATE, "bind", str(state), "rbind", "rw"),
        ],
        "linux": {"namespaces": [{"type": each} for each in _NAMESPACES]},
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }
