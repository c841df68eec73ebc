"""Import a library without a module that it loads and hsm-kms never uses.

A process starts for each command, and a worker each minute for the canary: what their
imports cost is paid over and over.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Let `import NAME` fail inside the block, unless the module is loaded already.

    For libraries that catch the ImportError because the module is optional.

    Args:
        name: The module.
    """
    if name in sys.modules:
        yield
        return
    hidden: Any = None  # documented to make an import fail
    sys.modules[name] = hidden
    try:
        yield
    finally:
        del sys.modules[name]
