"""Test every option that takes a file with files that cannot be used."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.harness.command_line import run
from tests.harness.troubleshooting import is_explained

NOBODY = 65534
ETCD = ("etcd", "scan", "--endpoints", "127.0.0.1:1")
KUBECTL = ("migrate", "--kubectl", "true")
OPTIONS = (
    ("config", "show", "--config"),
    ("check", "--config"),
    ("serve", "--config"),
    ("keys", "list", "--config"),
    ("status", "--config"),
    ("status", "--socket"),
    ("probe", "--socket"),
    ("token", "list", "--config"),
    ("token", "list", "--module"),
    ("token", "retry-pin", "--config"),
    ("etcd", "scan", "--from-json"),
    ("etcd", "scan", "--from-snapshot"),
    ("etcd", "show", "--value-file"),
    (*ETCD, "--cacert"),
    (*ETCD, "--cert", "/dev/null", "--key"),
    (*ETCD, "--key", "/dev/null", "--cert"),
    (*KUBECTL, "--resume"),
)
WORDS = {
    "missing": ("no such file", "does not exist"),
    "below a file": ("not a directory",),
    "loop": ("too many levels of symbolic links",),
    "too long": ("file name too long", "path too long"),
    "directory": ("is a directory", "is not a socket"),
}


@contextlib.contextmanager
def without_rights():
    """Let this process enter no directory of the test."""
    if os.geteuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)  # access(2) asks for the real user
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def paths(tmp_path):
    """Provide the paths by what is wrong with them."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    return {
        "missing": tmp_path / "none" / "file",
        "below a file": tmp_path / "file" / "file",
        "loop": tmp_path / "loop",
        "too long": tmp_path / ("x" * 300),
        "directory": tmp_path,
    }


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_file_that_cannot_be_used(options, paths):
    """The error names the reason; there is no traceback."""
    for wrong, path in paths.items():
        done = run(*options, path)
        assert done.returncode in {1, 2}
        if "--resume" in options and wrong == "missing":
            continue  # it is made
        said = (done.stderr + done.stdout).lower()
        assert any(words in said for words in WORDS[wrong]), (wrong, said)


@pytest.mark.usefixtures("open_checkout")
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_directory_that_cannot_be_entered(options, tmp_path):
    """The error says that the permission is denied; there is no traceback."""
    shut = tmp_path / "shut"
    shut.mkdir()
    run(*options, shut / "file")  # whoever has no rights might not import anything
    shut.chmod(0o000)
    try:
        with without_rights():
            done = run(*options, shut / "file")
    finally:
        shut.chmod(0o700)

    assert done.returncode in {1, 2}
    said = done.stderr + done.stdout
    assert "permission denied" in said.lower(), done
    if "--socket" in options:
        who = f"user {os.geteuid()}, or as root" if os.geteuid() else "root"
        assert f"hint: run it as {who}\n" in said
        assert is_explained("hsm-kms: the KMS socket /path/kms.sock cannot be used: ")


@pytest.mark.usefixtures("open_checkout")
@pytest.mark.parametrize("command", ["check", "status", "keys list", "config show"])
def test_a_configuration_of_another_user(command, directory):
    """The error says which user may not read it, and is not about wrong usage."""
    path = directory / "config.yaml"
    path.touch(0o600)
    run(*command.split(), "--config", path)  # whoever has no rights imports nothing
    directory.chmod(0o755)
    path.chmod(0o000)
    with without_rights():
        done = run(*command.split(), "--config", path)

    who = os.geteuid() or NOBODY
    assert 2 == done.returncode
    line = f"hsm-kms: {path} cannot be read: Permission denied for user {who}"
    assert f"{line}\n" == done.stderr
    assert is_explained(line, {str(path): "/path/config.yaml", str(who): "65534"})
