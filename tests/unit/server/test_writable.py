"""What other users could change of that which the server relies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hsm_kms.config.schema import Config
from hsm_kms.server.writable import warn, weaknesses
from tests.harness.log_capture import captured

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give files away"
)


@pytest.fixture
def place(directory):
    """Configuration, module, PIN file and state directory, each in its own place."""
    for name in ("etc", "lib", "secret", "state"):
        (directory / name).mkdir(mode=0o755)
    for name in ("etc/config.yaml", "lib/module.so", "secret/pin"):
        (directory / name).touch(mode=0o600)
    return directory


def config_of(place):
    return Config.model_validate(
        {
            "version": 1,
            "state_dir": str(place / "state"),
            "token": {
                "module": str(place / "lib/module.so"),
                "token_label": "t",
                "pin_file": str(place / "secret/pin"),
            },
        }
    )


def found(place, path=None):
    """What is found, as settings with causes and cures."""
    config = config_of(place)
    return [
        (each.setting, each.cause, each.cure)
        for each in weaknesses(config, path or place / "etc/config.yaml")
    ]


def test_nothing(place):
    """Files and directories that only their owner can write to are well."""
    assert [] == found(place)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("etc", "configuration"),
        ("etc/config.yaml", "configuration"),
        ("lib", "token.module"),
        ("lib/module.so", "token.module"),
        ("secret", "token.pin_file"),
        ("state", "state_dir"),
    ],
)
def test_writable_by_all(place, name, setting):
    """A file that all can write to, or a directory above it, is named with a cure."""
    path = place / name
    path.chmod(path.stat().st_mode | 0o002)

    assert [(setting, f"every user can write to {path}", f"chmod o-w {path}")] == found(
        place
    )


def test_a_directory_above_all(place):
    """A directory above several files is named once."""
    place.chmod(0o777)

    assert [
        ("configuration", f"every user can write to {place}", f"chmod o-w {place}")
    ] == found(place)


def test_sticky_directory(place):
    """In a sticky directory others cannot replace what is not theirs."""
    (place / "etc").chmod(0o1777)

    assert [] == found(place)


@needs_root
def test_owner_and_group(place):
    """A path of another user, or one that another group can write to, is named."""
    os.chown(place / "lib/module.so", 4711, -1)
    os.chown(place / "etc", -1, 4712)
    (place / "etc").chmod(0o775)
    etc, module = place / "etc", place / "lib/module.so"

    assert [
        ("configuration", f"group 4712 can write to {etc}", f"chmod g-w {etc}"),
        ("token.module", f"{module} belongs to user 4711", f"chown root {module}"),
    ] == found(place)


@needs_root
def test_files_of_the_service(place):
    """Where the files agree on another user, that user is named, and no chown."""
    for name in ("state", "secret/pin"):
        os.chown(place / name, 64711, 64712)
    with captured() as log:
        warn(config_of(place), place / "etc/config.yaml")

    (told,) = log.events()
    assert "this is not the service's user" == told["event"]
    assert f"user 64711 here, which owns {place}/state; this process" in told["error"]
    assert "setpriv --reuid=64711 --regid=64712 --clear-groups" in told["error"]
    assert "chown" not in told["error"]


def test_own_group(place):
    """The group of this process, or root's, may write."""
    (place / "etc").chmod(0o775)

    assert [] == found(place)


def test_through_links(place):
    """A link is followed, and each directory on the way is looked at."""
    (place / "other").mkdir()
    (place / "other").chmod(0o757)
    (place / "other/data").symlink_to("../etc")
    (place / "link.yaml").symlink_to(place / "other/data/config.yaml")
    other = place / "other"

    assert [
        ("configuration", f"every user can write to {other}", f"chmod o-w {other}")
    ] == found(place, place / "link.yaml")


def test_circle_of_links(place):
    """Links that lead nowhere end the search."""
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")

    assert [] == found(place, place / "a")


def test_relative_path(place, monkeypatch):
    """A relative path is looked at from the working directory up to the root."""
    place.chmod(0o777)
    monkeypatch.chdir(place)

    assert place in {Path(cause.split()[-1]) for _, cause, _ in found(place, Path("x"))}
