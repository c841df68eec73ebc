"""Denials that the mode of a file does not explain."""

from __future__ import annotations

import contextlib
import errno
import os
import struct

import pytest

from hsm_kms.denials import hint_for
from hsm_kms.errors import PinUnavailableError, WrongUserError
from hsm_kms.token.pin_file import identify
from hsm_kms.users import require_service_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become others")

OTHER = 10001
SECURITY_MODULE = "so SELinux, AppArmor or an ACL may deny it"
NOBODY = 0xFFFFFFFF
# Entries of an ACL as acl(5) has them: tag, permissions, user.
ENTRIES = (
    *((1, 7, NOBODY), (2, 0, OTHER), (4, 5, NOBODY)),
    *((16, 5, NOBODY), (32, 5, NOBODY)),
)


@contextlib.contextmanager
def other_user():
    """Be another user, with no capability."""
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def file(directory):
    """Return a file that every user can read."""
    directory.chmod(0o755)
    (directory / "in").mkdir(mode=0o755)
    file = directory / "in" / "file"
    file.write_bytes(b"1234")
    file.chmod(0o644)
    return file


def shut(path):
    """Deny a path to the other user by an ACL, which the mode does not show."""
    entries = b"".join(struct.pack("<HHI", *each) for each in ENTRIES)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + entries)


def denied(path, flags=os.O_RDONLY):
    """Return the hint for a file that the other user cannot open."""
    with other_user():
        with pytest.raises(PermissionError) as caught:
            os.open(path, flags)
        return hint_for(caught.value, path, "as usual", write=flags != os.O_RDONLY)


def test_denied_by_more_than_the_mode(file):
    """A denial that owner and mode do not explain hints at a security module."""
    shut(file)
    assert SECURITY_MODULE in denied(file)
    shut(file.parent)
    assert SECURITY_MODULE in denied(file)
    with other_user(), pytest.raises(PinUnavailableError) as refused:
        identify(file)
    assert SECURITY_MODULE in refused.value.hint


def test_denied_by_the_mode(file):
    """A denial that the mode explains, of the file or above, keeps its hint."""
    assert "as usual" == denied(file, os.O_WRONLY)
    file.chmod(0o600)
    assert "as usual" == denied(file)
    file.parent.chmod(0o700)
    assert "as usual" == denied(file)
    assert "as usual" == denied(file.parent / "none")


def test_what_this_user_may_not_look_at(file):
    """Who may not look at any of the service's files is not the service's user."""
    state, pin = file.parent / "state", file
    with other_user():
        require_service_user(file.parent / "nothing", None)
    file.parent.chmod(0o700)
    with other_user(), pytest.raises(WrongUserError) as refused:
        require_service_user(state, pin)

    assert f"user {OTHER} may not look at {state}" in str(refused.value)
    assert "chown" not in refused.value.hint


def test_root(file):
    """A process that may ignore modes is denied by something else; not so if absent."""
    denial = PermissionError(errno.EACCES, "Permission denied")
    assert SECURITY_MODULE in hint_for(denial, file, "as usual")
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert "as usual" == hint_for(missing, file, "as usual")
