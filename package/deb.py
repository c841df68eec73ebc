"""Build a Debian package: `make deb`, or python -m package.deb [DIRECTORY].

The package has a virtual environment in /opt/hsm-kms with the locked requirements. pip
looks for them where it always does; PIP_NO_INDEX and PIP_FIND_LINKS name a wheelhouse.
Their compiled parts are for one minor version of Python, that of this machine's
distribution: build on the release of Debian or Ubuntu that the package is for.

The same sources, the same wheels and the same SOURCE_DATE_EPOCH make the same file on
the same release. DEBFULLNAME and DEBEMAIL name another maintainer.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from hsm_kms import __version__
from package import deb_files, venv

ROOT: Final = Path(__file__).parents[1]
_DEBIAN: Final = ROOT / "package" / "debian"
_SCRIPTS: Final = ("postinst", "prerm", "postrm")
_REVISION: Final = 1  # of the package, for one version of hsm-kms
_MAINTAINER: Final = ("hsm-kms maintainers", "maintainers@hsm-kms.invalid")
# A higher level takes much longer, and saves little of the compiled parts.
_PACKED: Final = ("--root-owner-group", "-Zxz", "-z2")
_USUAL_EPOCH: Final = 1580601600  # as hatchling's, where no commit is known


def build(directory: Path) -> Path:
    """Build the package into a directory, and return its path."""
    os.environ["SOURCE_DATE_EPOCH"] = str(_epoch())
    with tempfile.TemporaryDirectory(prefix="hsm-kms-deb-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir(0o755)
        python = venv.make(tree, Path(scratch))
        architecture = _output("dpkg", "--print-architecture")
        name = f"hsm-kms_{version()}_{architecture}"
        deb_files.install(tree, python, version(), _maintainer())
        _normalise(tree)
        _write_control(tree, architecture, _libraries(tree, Path(scratch)))
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / deb_files.SBOM, directory / f"{name}.cdx.json")
        made = directory / f"{name}.deb"
        _run("dpkg-deb", *_PACKED, "--build", str(tree), str(made))
    return made


def version() -> str:
    """Return the package's version, which says for which release it was built."""
    release = platform.freedesktop_os_release()
    name = release["ID"] + release.get("VERSION_ID", "")
    return f"{__version__}-{_REVISION}+{name}"


def _epoch() -> int:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    last = subprocess.run(
        ["git", "log", "-1", "--format=%ct"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    return int(last.stdout) if last.returncode == 0 else _USUAL_EPOCH


def _maintainer() -> str:
    name, address = _MAINTAINER
    name = os.environ.get("DEBFULLNAME", name)
    return f"{name} <{os.environ.get('DEBEMAIL', address)}>"


def _normalise(tree: Path) -> None:
    """Give files the modes and times that no umask and no clock changes."""
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            runs = path.is_dir() or path.parent == tree / venv.PLACE / "bin"
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _libraries(tree: Path, scratch: Path) -> str:
    """Return what the compiled parts depend on, as dpkg-shlibdeps finds it."""
    (scratch / "debian").mkdir()
    stub = "Source: hsm-kms\n\nPackage: hsm-kms\nArchitecture: any\n"
    (scratch / "debian" / "control").write_text(stub)
    compiled = sorted(map(str, tree.rglob("*.so*")))
    found = _output(
        "dpkg-shlibdeps", "-O", *(f"-e{path}" for path in compiled), cwd=scratch
    )
    return found.partition("shlibs:Depends=")[2]


def _write_control(tree: Path, architecture: str, libraries: str) -> None:
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    size = sum(path.lstat().st_size for path in files)
    folder = tree / "DEBIAN"
    folder.mkdir()
    major, minor = venv.distribution_python()
    control = (_DEBIAN / "control").read_text()
    (folder / "control").write_text(
        control.format(
            version=version(),
            architecture=architecture,
            maintainer=_maintainer(),
            size=-(-size // 1024),
            python=f"{major}.{minor}",
            next_python=f"{major}.{minor + 1}",
            libraries=libraries,
        )
    )
    listed = [path for path in files if not path.is_symlink()]
    sums = _output(
        "md5sum", *(str(each.relative_to(tree)) for each in listed), cwd=tree
    )
    (folder / "md5sums").write_text(f"{sums}\n")
    for name in _SCRIPTS:
        shutil.copyfile(_DEBIAN / name, folder / name)
    _normalise(folder)
    for name in _SCRIPTS:
        (folder / name).chmod(0o755)
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    os.utime(tree, (epoch, epoch))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _output(*command: str, cwd: Path | None = None) -> str:
    ended = subprocess.run(
        command,
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"{command[0]} failed:\n{ended.stderr}")
    return ended.stdout.strip()


def main() -> None:
    """Build the package into the directory that is named, `dist` without one."""
    directory = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"
    sys.stdout.write(f"made {build(directory)}\n")


if __name__ == "__main__":
    main()
