"""Kryoptic as a PKCS#11 module, built once from its crate and kept.

`python -m tests.system.tokens.kryoptic_module` builds it if need be, and says where it
is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.harness.kept import kept, locked
from tests.system.tokens.base import MissingTokenError

CRATE = Path(__file__).parent / "kryoptic"
BUILD_TIMEOUT = 30 * 60.0  # seconds; two idle cores take less than one minute
_NEEDED = ("cargo", "clang", "pkg-config")


def path() -> Path:
    """Where the module is, or will be."""
    digest = hashlib.sha256()
    for file in (CRATE / "Cargo.toml", CRATE / "src" / "lib.rs"):
        digest.update(file.read_bytes())
    return kept(f"kryoptic-{digest.hexdigest()[:16]}") / "libkryoptic.so"


def build() -> Path:
    """The module, built now if it never was.

    Raises:
        MissingTokenError: A tool to build it with is missing.
    """
    module = path()
    if module.is_file():
        return module
    if lacking := [tool for tool in _NEEDED if not shutil.which(tool)]:
        raise MissingTokenError(f"Kryoptic cannot be built without {lacking[0]}")
    module.parent.mkdir(parents=True, exist_ok=True)
    with locked(module.parent / "lock"):
        if not module.is_file():
            _build(module)
    return module


def _build(module: Path) -> None:
    sys.stderr.write("building Kryoptic\n")
    with tempfile.TemporaryDirectory(dir=module.parent) as scratch:
        # A copy: cargo writes Cargo.lock beside Cargo.toml.
        crate = Path(scratch) / "crate"
        shutil.copytree(CRATE, crate, ignore=shutil.ignore_patterns("Cargo.lock"))
        target = Path(scratch) / "target"
        subprocess.run(
            ["nice", "cargo", "build", "--quiet", "--target-dir", str(target)],
            cwd=crate,
            env={**os.environ, "CARGO_INCREMENTAL": "0"},
            check=True,
            timeout=BUILD_TIMEOUT,
        )
        (target / "debug" / module.name).replace(module)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except MissingTokenError as error:
        sys.exit(str(error))
