"""buildah without a daemon, and a minimal Debian for it, made once and kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.harness.kept import kept

DEBIAN = "localhost/debian"
TIMEOUT = 45 * 60.0  # seconds; on two idle cores, a build takes about one minute
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Packages, and files of this machine that a container runtime mounts over.
_LEFT_BY_DEBOOTSTRAP = (
    "var/cache/apt/archives/*.deb",
    "etc/resolv.conf",
    "etc/hostname",
)


def cache() -> Path:
    """Return the folder for what is built once."""
    return kept("image")


class Storage:
    """Images and containers of buildah in a folder of their own.

    Args:
        folder: A folder that is made for them.
    """

    def __init__(self, folder: Path) -> None:
        self.buildah = [
            *("buildah", "--storage-driver", "vfs"),
            *("--root", str(folder / "storage"), "--runroot", str(folder / "run")),
        ]

    def run(self, *arguments: str) -> str:
        """Run buildah on them, and return what it wrote to stdout."""
        return call([*self.buildah, *arguments])

    def save(self, name: str, archive: Path) -> None:
        """Write an image as a docker-archive."""
        self.run("push", "--quiet", name, f"docker-archive:{archive}:{name}")


def debian_image(release: str) -> Path:
    """Return the archive of an image with a minimal Debian, made once and kept."""
    archive = cache() / f"debian-{release}.tar"
    if not archive.is_file():
        sys.stderr.write(f"installing a minimal Debian {release}\n")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="debian-") as scratch:
            root, storage = Path(scratch) / "root", Storage(Path(scratch))
            _install(release, root)
            container = storage.run("from", "scratch").strip()
            storage.run("add", "--quiet", container, str(root), "/")
            storage.run("commit", "--quiet", container, f"{DEBIAN}:{release}")
            storage.save(f"{DEBIAN}:{release}", Path(scratch) / "image.tar")
            (Path(scratch) / "image.tar").rename(archive)
    return archive


def _install(release: str, root: Path) -> None:
    options = ["--variant=minbase"]
    if _KEYRING.exists():  # of a Debian; Ubuntu knows its own keys alone
        options.append(f"--keyring={_KEYRING}")
    call(["debootstrap", *options, release, str(root), *_mirror()])
    for pattern in _LEFT_BY_DEBOOTSTRAP:
        for path in root.glob(pattern):
            path.unlink()


def _mirror() -> list[str]:
    """Return the address of this machine's Debian archive, none for the usual one."""
    form = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    listed = call(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    addresses = re.findall(r"^Debian Debian (https?:\S+)$", listed, re.MULTILINE)
    return addresses[:1]


def call(
    command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """Run a command and return what it wrote to stdout."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if command[0] in {"make", "debootstrap"} else None,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    if ended.returncode:
        sys.stderr.write(ended.stdout)
        raise subprocess.CalledProcessError(ended.returncode, command)
    return ended.stdout
