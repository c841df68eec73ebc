"""Say what to do about a state directory that cannot be used."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from hsm_kms.denials import hint_for
from hsm_kms.users import install_line

if TYPE_CHECKING:
    from pathlib import Path

OWN: Final = (
    "give hsm-kms a directory of its own, on a disk with free space, that its user "
    "owns and only that user can write to (mode 0700)"
)
_CURES: Final = {
    errno.EROFS: "mount its file system read-write, or choose another state_dir",
    errno.ENOSPC: "free space on its disk, or choose another state_dir",
    errno.EDQUOT: "raise the quota of hsm-kms's user, or choose another state_dir",
    errno.EACCES: "let hsm-kms's user write to it, and enter the directories above",
}


def cure_of(error: OSError, path: Path) -> str:
    """Return how to make the state directory usable.

    Args:
        error: What the kernel said.
        path: The directory.
    """
    if error.errno == errno.ENOENT:
        return f"as root, run: {install_line(path)}"
    return hint_for(error, path, _CURES.get(error.errno or 0, OWN), write=True)
