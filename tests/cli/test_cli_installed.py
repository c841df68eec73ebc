"""Test that a worker starts however hsm-kms was installed, or that the error says why.

A worker is a Python of its own, which is isolated: it finds hsm-kms only by what the
command tells it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.harness.examples import LONG
from tests.harness.softhsm import softhsm_module
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient

ROOT = Path(__file__).parents[2]
BASE = str(Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name)
# Where a Python without the virtual environment finds what is installed in it.
PATHS = [str(ROOT), sysconfig.get_paths()["purelib"]]
LAUNCHER = f"""\
import sys
sys.path[1:1] = {PATHS}
from hsm_kms.start import main
"""


def listed(tmp_path, hsm, *command, **env):
    """Run `token list`, and return how it ended."""
    return subprocess.run(
        [*command, "token", "list", "--module", softhsm_module(), "-o", "json"],
        cwd=tmp_path,
        env=os.environ | hsm.env | env,
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )


def by_pythonpath(_):
    """Tell Python where hsm-kms is by PYTHONPATH, one of them relative."""
    paths = [os.path.relpath(PATHS[0], _), PATHS[1]]
    return [BASE, "-m", "hsm_kms"], {"PYTHONPATH": os.pathsep.join(paths)}


def by_user_site(folder):
    """Do as `pip install --user`."""
    env = {"PYTHONUSERBASE": str(folder / "user")}
    site = sysconfig.get_path(
        "purelib", "posix_user", {"userbase": str(folder / "user")}
    )
    Path(site).mkdir(parents=True)
    (Path(site) / "installed.pth").write_text("\n".join(PATHS))
    return [BASE, "-m", "hsm_kms"], env


def by_zipapp(folder):
    """Pack hsm-kms into a zip file; what it needs is beside it."""
    with zipfile.ZipFile(folder / "hsm-kms.pyz", "w") as archive:
        for file in (ROOT / "hsm_kms").rglob("*.py"):
            archive.write(file, file.relative_to(ROOT))
        archive.writestr("__main__.py", "from hsm_kms.start import main; main()")
    return [BASE, "hsm-kms.pyz"], {"PYTHONPATH": PATHS[1]}


def by_wrapper(folder):
    """Do as Nix: a script that extends sys.path."""
    (folder / "hsm-kms").write_text(f"{LAUNCHER}main()\n")
    return [BASE, "-I", "hsm-kms"], {}


def by_another_python(folder):
    """Do as pipx: a virtual environment of its own, with another interpreter."""
    made = [BASE, "-m", "venv", "--without-pip", "--copies", "venv"]
    subprocess.run(made, check=True, cwd=folder)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "installed.pth").write_text("\n".join(PATHS))
    return [str(folder / "venv/bin/python"), "-m", "hsm_kms"], {}


WAYS = (by_pythonpath, by_user_site, by_zipapp, by_wrapper, by_another_python)
FEW_WAYS = (by_user_site, by_zipapp)


@pytest.mark.parametrize(
    "way", WAYS if LONG else FEW_WAYS, ids=lambda way: way.__name__
)
def test_works(way, tmp_path, hsm):
    """A worker imports what the command imports."""
    command, env = way(tmp_path)
    done = listed(tmp_path, hsm, *command, **env)

    assert 0 == done.returncode, done.stderr
    assert "test" in [token["label"] for token in json.loads(done.stdout)]


def test_says_why(tmp_path, hsm):
    """If a worker cannot import hsm-kms, the error says so, and names the Python."""
    (tmp_path / "hsm-kms").write_text(
        f"{LAUNCHER}import hsm_kms.cli.token\ndel sys.path[1]\nmain()\n"
    )
    done = listed(tmp_path, hsm, BASE, "-I", "hsm-kms")

    assert 1 == done.returncode
    assert is_explained(done.stderr.splitlines()[0])
    assert done.stderr == (
        "hsm-kms: the token worker cannot start: ModuleNotFoundError: No module named "
        "'hsm_kms'\n"
        f"hint: hsm-kms runs its workers by {BASE}: restart hsm-kms if that was "
        "upgraded, or else install hsm-kms into a virtual environment\n"
    )


def test_python_is_gone(tmp_path, hsm):
    """If the interpreter was removed or upgraded meanwhile, the error says so."""
    for change, words in (
        ("sys.executable = '/gone/python3'", "by /gone/python3: No such file"),
        ("sys.version_info = (3, 10)", "Python has changed since hsm-kms was started"),
    ):
        (tmp_path / "hsm-kms").write_text(f"{LAUNCHER}{change}\nmain()\n")
        done = listed(tmp_path, hsm, BASE, "-I", "hsm-kms")

        assert 1 == done.returncode
        assert words in done.stderr
