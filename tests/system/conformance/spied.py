"""A server of one session, and the record of its calls into the module."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING

from tests.harness.spy import Spy
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.plugin import Plugin

TIMES = 10  # requests whose calls are counted together


class Spied:
    """The server behind OpenSC's pkcs11-spy, started and healthy.

    It looks at its keys so rarely that only the looks after the start are seen.

    Args:
        plugin: The configuration of the server, whose process is not started.
        file: Where the spy writes.

    Attributes:
        plugin: The server.
        at_start: Calls made before the first request.

    Raises:
        FileNotFoundError: The spy is not installed.
    """

    def __init__(self, plugin: Plugin, file: Path) -> None:
        spy = Spy(file)
        self.plugin = plugin
        self._file = file
        plugin.config |= {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}
        plugin.config["token"] |= {
            "module": spy.module,
            "env": plugin.hsm.env | spy.env,
            "workers": 1,
            "sessions_per_worker": 1,
        }
        plugin.write_config()
        plugin.start().wait_healthz("ok")
        self.at_start = self.calls()

    def text(self) -> str:
        """Everything that the spy wrote."""
        return self._file.read_text(errors="replace")

    def calls(self) -> Counter[str]:
        """Count the calls so far, by function."""
        return Counter(re.findall(r"^\d+: (C_\w+)$", self.text(), re.MULTILINE))

    def cost(self, request: Callable[[], object], expected: Counter) -> Counter[str]:
        """Make a request ten times, and count the calls.

        A look in the background can only add calls: as long as they are not those
        expected, the requests are made and counted again.

        Args:
            request: Makes one request.
            expected: Calls by function.

        Returns:
            Calls of the last ten requests.
        """
        found: list[Counter[str]] = []

        def as_expected() -> bool:
            before = self.calls()
            for _ in range(TIMES):
                request()
            found.append(self.calls() - before)
            return found[-1] == expected

        with contextlib.suppress(AssertionError):
            wait_for(as_expected)
        return found[-1]
