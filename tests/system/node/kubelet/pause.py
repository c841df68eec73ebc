"""The image of the process that holds the namespaces of a pod, made without tools.

It is one static program that waits, and reaps what loses its parent.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

NAME: Final = "localhost/pause:e2e"
_SOURCE: Final = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


def write(archive: Path) -> None:
    """Write the image as an archive in docker's format.

    Args:
        archive: The file.
    """
    layer = _tar({"pause": (_program(), 0o755)})
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    archive.write_bytes(_tar({name: (data, 0o644) for name, data in files.items()}))


def _program() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pause"
        subprocess.run(
            ["gcc", "-static", "-Os", "-s", "-x", "c", "-", "-o", str(out)],
            input=_SOURCE.encode(),
            check=True,
            capture_output=True,
        )
        return out.read_bytes()


def _architecture() -> str:
    return {"aarch64": "arm64"}.get(os.uname().machine, "amd64")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
