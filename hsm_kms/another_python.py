"""Run a module of hsm-kms in another Python, which imports what this one imports.

The other Python is isolated (-I): the working directory and PYTHON* variables do not
tell it what to import. This process's own path does. It may be the only one that leads
to hsm-kms: after `pip install --user`, by PYTHONPATH, in a zipapp, under Nix.
"""

from __future__ import annotations

import os
import sys
from typing import Final

# Ctrl-C in a terminal reaches this process, too: what ends it must not be a traceback.
_CODE: Final = """\
import _signal as signal
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
import sys
if sys.version_info[:2] != {version}:
    sys.exit("ImportError: Python has changed since hsm-kms was started")
sys.path[:] = {path!r}
from {module} import main
main()
"""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that calls `main()` of a module.

    Args:
        module: Name of the module; it shows in the list of processes.
        arguments: What `main()` finds in sys.argv.
    """
    code = _CODE.format(
        version=tuple(sys.version_info[:2]),
        path=[os.path.abspath(entry) for entry in sys.path],  # noqa: PTH100 - "" too
        module=module,
    )
    return [sys.executable, "-I", "-c", code, *arguments]
