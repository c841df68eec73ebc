"""The container image, built once by `make image` and kept, without a registry.

`python -m tests.system.node.images` builds both targets and says where they are.
buildah builds them, in a storage of its own that is removed, and needs no daemon. The
base is made by debootstrap from the release that the Dockerfile names. How this machine
reaches package indexes is handed to the build as secrets, and is not in the image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hsm_kms import __version__
from tests.harness.kept import locked
from tests.system.node.buildah import DEBIAN, Storage, cache, call, debian_image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
NAME = f"localhost/hsm-kms:{__version__}"
NAMES = {"runtime": NAME, "dev": f"{NAME}-dev"}
EPOCH = 1_750_000_000  # SOURCE_DATE_EPOCH of the image
KEPT_SECONDS = 7 * 24 * 3600.0  # of images of other contents
_TOOLS = ("buildah", "debootstrap", "apt-get")
# Settings of pip that say how an index is reached.
_INDEX = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


class Image(NamedTuple):
    """An image as files.

    Args:
        name: The name under which the archive has it.
        archive: The image in the format docker-archive.
        sbom: The SBOM that `make image` put beside it.
        seconds: How long it took to build.
    """

    name: str
    archive: Path
    sbom: Path
    seconds: float


def missing() -> str | None:
    """Say what keeps the image from being built here, None if nothing does."""
    if os.geteuid() != 0:
        return "debootstrap needs root"
    lacking = [tool for tool in _TOOLS if not shutil.which(tool)]
    return f"{lacking[0]} is not installed" if lacking else None


def image(target: str = "runtime") -> Image:
    """Return the image of this checkout, built now if it never was.

    Several processes may call this at once: one builds, the others wait.

    Args:
        target: The target of the Dockerfile, `runtime` or `dev`.
    """
    folder = cache() / f"image-{_digest()}"
    cache().mkdir(parents=True, exist_ok=True)
    with locked(cache() / "lock"):
        if not folder.is_dir():
            _build(folder)
        os.utime(folder)
        _drop_old()
    return Image(
        name=NAMES[target],
        archive=folder / f"{target}.tar",
        sbom=folder / f"{target}.cdx.json",
        seconds=json.loads((folder / "seconds.json").read_text())[target],
    )


def _inputs() -> list[Path]:
    """Return every file that the image is made of, and that says how."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    names = [line[1:] for line in lines if line.startswith("!")]
    names += ["Dockerfile", ".dockerignore", "Makefile"]
    paths = [each for name in names for each in _files(ROOT / name)]
    return sorted(path for path in paths if "__pycache__" not in path.parts)


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or every file and every link in a folder."""
    if path.is_dir():
        found = path.rglob("*")
        yield from (each for each in found if each.is_symlink() or each.is_file())
    else:
        yield path


def _digest() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in _inputs():
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        content = hashlib.sha256(data).hexdigest()
        line = f"{path.relative_to(ROOT)} {path.lstat().st_mode} {content}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _drop_old() -> None:
    """Remove images that nobody asked for lately, and what a killed build has left.

    Whoever calls this has the lock, so nobody else builds.
    """
    for path in (*cache().glob("build-*"), *cache().glob("debian-*/")):
        shutil.rmtree(path, ignore_errors=True)
    for path in cache().glob("image-*"):
        if time.time() - path.stat().st_mtime > KEPT_SECONDS:  # noqa: TID251 - of files
            shutil.rmtree(path)


def _build(folder: Path) -> None:
    """Build both targets in a copy of the checkout, and put them into a folder."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix="build-") as scratch:
        made = _Build(Path(scratch))
        base = made.base()
        sys.stderr.write("building the container image\n")
        done = Path(scratch) / "done"
        done.mkdir()
        seconds = {target: made.target(target, base, done) for target in NAMES}
        (done / "seconds.json").write_text(json.dumps(seconds))
        done.rename(folder)


class _Build:
    """A checkout, a storage and the secrets of one build.

    Args:
        scratch: An empty folder for all of them.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._checkout = scratch / "checkout"
        for path in _inputs():
            copy = self._checkout / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
        self._storage = Storage(scratch)

    def base(self) -> str:
        """Load the base image, and return its name."""
        release = _release()
        self._storage.run("pull", "--quiet", f"docker-archive:{debian_image(release)}")
        return f"{DEBIAN}:{release}"

    def target(self, target: str, base: str, done: Path) -> float:
        """Build a target into a folder, and return how many seconds that took."""
        began = time.monotonic()
        options = ["--network", "host", "--isolation", "chroot"]
        if target == "dev":  # on the image that was built before
            options += ["--build-context", f"runtime=docker-image://{NAME}"]
        for name, file in _secrets(self._scratch).items():
            options += ["--secret", f"id={name},src={file}"]
        variables = {
            "TOOL": " ".join(self._storage.buildah),
            "BASE": base,
            "TARGET": target,
            "BUILD_OPTIONS": " ".join(options),
        }
        call(
            ["make", "image", *map("=".join, variables.items())],
            cwd=self._checkout,
            env={"SOURCE_DATE_EPOCH": str(EPOCH), "BUILDAH_ISOLATION": "chroot"},
        )
        seconds = time.monotonic() - began
        self._storage.save(NAMES[target], done / f"{target}.tar")
        (sbom,) = (self._checkout / "dist").iterdir()
        sbom.rename(done / f"{target}.cdx.json")
        return seconds


def _release() -> str:
    """Return the release of Debian that the Dockerfile's base is."""
    text = (ROOT / "Dockerfile").read_text()
    (release,) = re.findall(r"^ARG BASE=\S*/debian:(\w+)-slim$", text, re.MULTILINE)
    return str(release)


def _secrets(scratch: Path) -> dict[str, Path]:
    """Write how this machine reaches package indexes as secrets of the build."""
    listed = call([sys.executable, "-m", "pip", "config", "list"])
    found = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines = [f"{key} = {found[key]}" for key in _INDEX if key in found]
    secrets = {}
    if ca := found.get("cert") or os.environ.get("SSL_CERT_FILE"):
        secrets["ca"] = Path(ca)
        lines.append("cert = /run/secrets/ca")
    pip = secrets["pip.conf"] = scratch / "pip.conf"
    pip.write_text("\n".join(["[global]", *lines, ""]))
    apt = secrets["apt.conf"] = scratch / "apt.conf"
    settings = call(["apt-config", "dump"]).splitlines()
    wanted = re.compile(r"Acquire::(Check-|http|https|Retries)")
    apt.write_text("\n".join([*filter(wanted.match, settings), ""]))
    return secrets


def main() -> None:
    """Build everything and print where it is."""
    for target in NAMES:
        made = image(target)
        sys.stdout.write(f"{made.archive} ({made.name}, {made.seconds:.0f} s)\n")


if __name__ == "__main__":
    main()
