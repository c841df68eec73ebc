"""Make the virtual environment of the Debian package, for its final path.

It is made below another root, so what names that root is written anew: the first lines
of the programs, and pyvenv.cfg. Nothing else names it, which is checked. It has no
bytecode: postinst compiles on the machine where the package is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from hsm_kms import __version__

ROOT: Final = Path(__file__).parents[1]
PLACE: Final = "opt/hsm-kms"
PYTHON: Final = Path("/usr/bin/python3")  # that of the distribution, not of .venv
PROGRAMS: Final = ("hsm-kms", "hsm-kms-healthcheck")
_OLDEST: Final = (3, 11)


def distribution_python() -> tuple[int, int]:
    """Return major and minor version of the distribution's Python."""
    asked = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    major, minor = json.loads(_run(str(PYTHON), "-I", "-c", asked))
    if (major, minor) < _OLDEST:
        raise SystemExit(f"{PYTHON} is Python {major}.{minor}; 3.11 or later is needed")
    return int(major), int(minor)


def make(tree: Path, scratch: Path) -> Path:
    """Make the environment below a root, and return the Python in it.

    Args:
        tree: The root file system of the package.
        scratch: A directory for the wheel of hsm-kms.
    """
    major, minor = distribution_python()
    place = tree / PLACE
    _run(str(PYTHON), "-I", "-m", "venv", "--without-pip", str(place))
    python = place / "bin" / "python"
    _install(python, scratch)
    for path in (place / "bin").iterdir():
        if path.name in PROGRAMS:
            _set_interpreter(path)
        elif not path.name.startswith("python"):
            path.unlink()  # scripts to activate it, and of other packages
    (place / "pyvenv.cfg").write_text(
        f"home = {PYTHON.parent}\ninclude-system-site-packages = false\n"
        f"version = {major}.{minor}\n"
    )
    shutil.rmtree(place / "include", ignore_errors=True)
    _correct_records(place)
    _require_relocated(tree)
    return python


def _install(python: Path, scratch: Path) -> None:
    wheels = scratch / "wheels"
    build = (
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(wheels),
    )
    _run(sys.executable, *build, cwd=ROOT)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    install = (*pip, "--python", str(python), "install", "--no-compile", "--no-deps")
    locked = ("--require-hashes", "-r", str(ROOT / "requirements" / "run.txt"))
    _run(*install, "--only-binary", ":all:", *locked)
    own = ("--no-index", "--find-links", str(wheels), f"hsm-kms=={__version__}")
    _run(*install, *own)


def _set_interpreter(program: Path) -> None:
    _, _, code = program.read_text().partition("\n")
    program.write_text(f"#!/{PLACE}/bin/python\n{code}")


def _correct_records(place: Path) -> None:
    """Take from the lists of installed files the programs, which were changed."""
    for record in place.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("../")))


def _require_relocated(tree: Path) -> None:
    """Refuse to go on if a file names the root under which this was made."""
    named = os.fsencode(tree)
    for path in tree.rglob("*"):
        if path.is_symlink():
            found = named in os.fsencode(path.readlink())
        else:
            found = path.is_file() and named in path.read_bytes()
        if found:
            raise SystemExit(f"{path} names {tree}")


def _run(*command: str, cwd: Path | None = None) -> str:
    ended = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout
