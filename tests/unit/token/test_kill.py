"""Killing a worker process, and no other."""

from __future__ import annotations

import asyncio
import sys

from hsm_kms.token.kill import Killer


async def test_child_that_has_been_waited_for():
    """A child that ended before it could be named is left alone."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    killer = Killer(process)
    killer.kill()
    killer.close()

    assert 0 == process.returncode
