"""Import a library without an optional module that hsm-kms never uses.

Each command is a new process, and the server starts a fresh worker that lists the keys
as often as once a minute. All of them pay for their imports.
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

    This is for libraries that catch the ImportError because the module is optional.

    Args:
        name: Name of the module.
    """
    if name in sys.modules:
        yield
        return
    hidden: Any = None  # None in sys.modules makes the import fail, as documented
    sys.modules[name] = hidden
    try:
        yield
    finally:
        del sys.modules[name]
