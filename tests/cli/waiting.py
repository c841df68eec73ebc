"""Run a command with `--wait`, and let what it waits for happen."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.harness.command_line import HSM_KMS, Ended
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Callable


def run_until_waiting(happen: Callable[[], object], *arguments: object) -> Ended:
    """Run `hsm-kms ARGUMENT...` to its end, in a process of its own.

    Args:
        happen: Called once the command has said what it waits for.
        arguments: The command and its options.
    """
    process = subprocess.Popen(
        [*HSM_KMS, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        first = process.stderr.readline()
        happen()
        out, err = process.communicate(timeout=patient(60))
    finally:
        process.kill()
        process.wait()
    return Ended(process.returncode, out, first + err)
