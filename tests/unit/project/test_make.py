"""Test which programs the Makefile and its scripts choose, with stubs of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hsm_kms import __version__
from tests.harness.wait import patient

ROOT = Path(__file__).parents[3]
MAKE = shutil.which("make") or "make"

# Writes down how it was called; fails at the words in FAIL.
STUB = """#!/bin/sh
echo "{name} $*" >>"{log}"
case " {fails} " in *" $1 "*) exit 1 ;; esac
{does}
"""


@pytest.fixture
def stubbed(tmp_path):
    """Run a command that finds these programs alone, and return output and calls."""
    log, programs = tmp_path / "log", tmp_path / "bin"

    def run(stubs, *command, real=()):
        shutil.rmtree(programs, ignore_errors=True)
        programs.mkdir()
        log.write_text("")
        for name in real:
            (programs / name).symlink_to(shutil.which(name))
        for name, (fails, does) in stubs.items():
            text = STUB.format(name=name, log=log, fails=fails, does=does)
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env={"PATH": str(programs)},
            check=False,
            capture_output=True,
            text=True,
            timeout=patient(30),
        )
        calls = log.read_text().splitlines()
        return ended.returncode, ended.stdout + ended.stderr, calls

    return run


NAME = f"localhost/hsm-kms:{__version__}"
LABEL = f"--label org.opencontainers.image.version={__version__}"
BUILD = f"build --target runtime --tag {NAME} {LABEL} ."
SHOW = f"run --rm --network none --entrypoint cat {NAME} "

# the programs there, with the command at which each fails · code · what builds
IMAGES = {
    "a docker client without its daemon": (
        {"docker": "info", "buildah": ""},
        0,
        f"buildah {BUILD}",
    ),
    "a working docker": ({"docker": "", "podman": ""}, 0, f"docker {BUILD}"),
    "podman alone": ({"podman": ""}, 0, f"podman {BUILD}"),
    "a build that fails": ({"docker": "build", "buildah": ""}, 2, f"docker {BUILD}"),
    "none that works": ({"docker": "info"}, 2, None),
    "none": ({}, 2, None),
}


@pytest.fixture
def checkout(tmp_path):
    """What `make image` reads of the project, so that nothing is written into it."""
    folder = tmp_path / "checkout"
    for name in ("Makefile", "image", "hsm_kms/__init__.py", "manifests"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def make_image(stubbed, checkout):
    """Run `make image` with stubs of the programs that build."""

    def run(there, *variables):
        stubs = {tool: (fails, "") for tool, fails in there.items()}
        command = (MAKE, "--no-print-directory", "-C", str(checkout), "image")
        return stubbed(
            stubs, *command, *variables, real=("grep", "mkdir", "nproc", "sed")
        )

    return run


@pytest.mark.parametrize("name", IMAGES)
def test_image(make_image, name):
    """`make image` builds with the first program that works, and says what does not."""
    there, code, built = IMAGES[name]
    ended, said, calls = make_image(there)
    builds = [each for each in calls if " build " in each]

    assert (code, [built] if built else []) == (ended, builds), said
    broken = [tool for tool, fails in there.items() if fails == "info"]
    for tool in broken:
        assert f"{tool} is installed, but does not work: {tool} info says why" in said
    if code and not built:
        assert "needs docker with a running daemon, podman or buildah" in said


def test_image_says_what_it_made(make_image, checkout):
    """`make image` names the image, where its SBOM is, and that the manifest fits."""
    ended, said, calls = make_image({"podman": ""})

    assert 0 == ended, said
    assert calls[-1].startswith(f"podman {SHOW}")
    assert said.splitlines()[-3:] == [
        f"made {NAME} with podman",
        f"what is in it: dist/hsm-kms-{__version__}.cdx.json",
        "manifests/static-pod.yaml names this image",
    ]
    assert (checkout / "dist" / f"hsm-kms-{__version__}.cdx.json").exists()


def test_image_takes_variables(make_image):
    """`make image` takes tool, base, name, tag, target and more options."""
    ended, said, calls = make_image(
        {"docker": "", "podman": ""},
        *("TOOL=podman --log-level warn", "BASE=registry.example/debian:13"),
        *("IMAGE=registry.example/kms", "TAG=7", "TARGET=dev"),
        "BUILD_OPTIONS=--secret id=ca,src=ca.pem",
    )

    assert 0 == ended, said
    assert (
        "podman --log-level warn build --target dev --tag registry.example/kms:7 "
        f"{LABEL} --build-arg BASE=registry.example/debian:13 "
        "--secret id=ca,src=ca.pem ."
    ) == calls[0]
    assert "in a pod's manifest, write: image: registry.example/kms:7" in said


def test_image_of_another_target(make_image):
    """The image with SoftHSM2 has a tag of its own, so that none is taken for it."""
    _, _, calls = make_image({"podman": ""}, "TARGET=dev")

    assert f"podman build --target dev --tag {NAME}-dev {LABEL} ." == calls[1]


INSTALL = "apt-get install --yes --quiet --no-install-recommends some thing"
APT = {"apt-get": ("", "")}
USER = {"id": ("", "echo 1000")}
ROOT_USER = {"id": ("", "echo 0")}
SUDO = {"sudo": ("", '"$@"')}

# programs · True if it installs · what is said
PACKAGES = {
    "root": (APT | ROOT_USER, True, f"running: {INSTALL}"),
    "a user with sudo": (
        APT | USER | SUDO | {"true": ("", "")},
        True,
        f"running: sudo {INSTALL}",
    ),
    "a user without sudo": (APT | USER, False, f"as root run: {INSTALL}"),
    "a user whom sudo refuses": (
        APT | USER | {"sudo": ("true", "")},
        False,
        f"as root run: {INSTALL}",
    ),
    "no apt": (ROOT_USER, False, "missing on this system, under the names"),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages(stubbed, name):
    """What is missing is said before it is installed, and who may not is told how."""
    stubs, installs, words = PACKAGES[name]
    script = ". softhsm/apt.sh; install_packages some thing"
    ended, said, calls = stubbed(stubs, "/bin/sh", "-euc", script)

    assert (0 if installs else 1) == ended, said
    assert said.startswith(
        "missing on this system, under the names Debian gives them: some thing\n"
    )
    assert words in said
    assert installs == (INSTALL in calls)


def test_packages_come_first():
    """Packages of the system are looked for before anything takes long."""
    tests = ("test", "test-faults", "test-alerts", "test-tokens", "coverage")
    for target in ("run", "check", *tests):
        shown = subprocess.run(
            [MAKE, "--no-print-directory", "--dry-run", target],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=patient(30),
        ).stdout
        first = shown.splitlines()[0]
        assert first in {"tests/packages.sh", "softhsm/setup.sh --install"}, target
