"""A bare Debian of this machine's release, in which a package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.kept import kept, locked

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[3]
_BARE = ROOT / "tests" / "bare"
_TOOLS = ("debootstrap", "dpkg-shlibdeps", "lintian", "unshare")
# What the tests use there, and nothing of which the package depends on.
_PACKAGES = "softhsm2 man-db zsh fish"
_UPDATE = "apt-get -qq update"
_INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends"
TIMEOUT = 30 * 60.0  # seconds; most commands take a few, an installation half a minute


def missing() -> str | None:
    """Say what keeps a package from being tried here, None if nothing does."""
    if os.geteuid() != 0:
        return "debootstrap needs root"
    lacking = [tool for tool in _TOOLS if not shutil.which(tool)]
    return f"{lacking[0]} is not installed" if lacking else None


class BareRoot:
    """A root file system over others, in memory, from its making to `close`.

    Args:
        lower: What it begins with, the uppermost first; nobody may change that.
        at: A folder that is made for it.
    """

    def __init__(self, lower: Sequence[Path], at: Path) -> None:
        self._at, self.path = at, at / "root"
        at.mkdir()
        _mount("-t", "tmpfs", "tmpfs", at)
        upper, work = at / "upper", at / "work"
        for each in (upper, work, self.path):
            each.mkdir()
        below = ":".join(map(str, lower))
        options = f"lowerdir={below},upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "-o", options, "overlay", self.path)
        self._layers = (upper, *lower)

    def copy(self, at: Path) -> BareRoot:
        """Return a root that begins as this one is now."""
        return BareRoot(self._layers, at)

    def close(self) -> None:
        """Leave nothing behind."""
        subprocess.run(["umount", self.path], check=True)
        subprocess.run(["umount", self._at], check=True)
        self._at.rmdir()

    def run(self, script: str, *, code: int = 0, network: bool = False) -> str:
        """Run a script as root in namespaces of its own, and return what it prints.

        What the script has started ends with it.

        Args:
            script: Lines for a shell, which ends at the first command that fails.
            code: The exit code that it must end with.
            network: Share the network of this machine; there is none otherwise.
        """
        return _enter(self.path, script, code=code, network=network)

    def install(self, *packages: str) -> str:
        """Install packages, with what they depend on."""
        return self.run(f"{_INSTALL} {' '.join(packages)}", network=True)


def bare_root(at: Path) -> BareRoot:
    """Return a root in which the tests' own tools are installed, made once and kept.

    Args:
        at: A folder that does not exist yet.
    """
    cache = kept("deb")
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / "root"
    with locked(cache / "lock"):
        if not made.is_dir():
            sys.stderr.write("installing a minimal Debian\n")
            unfinished = cache / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            subprocess.run([_BARE / "minimal.sh", unfinished], check=True)
            install = f"{_UPDATE}\n{_INSTALL} {_PACKAGES}"
            _enter(unfinished, install, network=True)
            unfinished.rename(made)
    root = BareRoot([made], at)
    root.run(_UPDATE, network=True)
    return root


def _enter(root: Path, script: str, *, code: int = 0, network: bool = False) -> str:
    kinds = ["--mount", "--ipc", "--pid"] + ([] if network else ["--net"])
    private = ["--propagation", "private", "--fork", "--kill-child"]
    enter = ["unshare", *kinds, *private, str(_BARE / "enter.sh")]
    ended = subprocess.run(
        [*enter, str(root), "root", "/", f"set -eu\n{script}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert code == ended.returncode, (script, ended.returncode, ended.stdout)
    return ended.stdout


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)
