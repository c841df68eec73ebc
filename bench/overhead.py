"""Measure what logs, metrics and audit cost: the rate of the same load without them.

Only what can be switched is measured: the counters behind the metrics are always kept.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import load
from bench.common import apis, pid_of, serving
from bench.rates import Contender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Results
    from tests.harness.plugin import Plugin

SUITE = "overhead"
STREAMS = 16
SCRAPE_SECONDS = 1.0
SCRAPED = "metrics read every second"
BASE = "log.level: warning"


def variants(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the sections that each variant changes.

    Args:
        directory: Where a file of the audit may be.
    """
    base = {"log": {"level": "warning"}, "apis": apis("token")}
    return {
        BASE: base,
        "log.level: info": base | {"log": {"level": "info"}},
        "log.level: debug": base | {"log": {"level": "debug"}},
        SCRAPED: base,
        "audit": base | {"audit": {"file": str(directory / "audit.log")}},
    }


def run(directory: Path, plan: Plan, results: Results) -> None:
    """Measure all variants, in turns."""
    data = load.frame(directory)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(directory / f"o{number}", **sections))[0]
            for number, (name, sections) in enumerate(variants(directory).items())
        }
        for _ in range(plan.rounds):
            for name, plugin in servers.items():
                _measure(name, plugin, data, plan, results)


def _measure(
    name: str, plugin: Plugin, data: Path, plan: Plan, results: Results
) -> None:
    one = Contender(
        path="token",
        socket=plugin.socket,
        records=data,
        pid=pid_of(plugin),
        plugin=plugin,
    )
    with ExitStack() as stack:
        if name == SCRAPED:
            stack.enter_context(_scraped(plugin))
        once = partial(one.encrypt, data, STREAMS, plan.seconds)
        metrics, void = one.measured(once)
    results.add(SUITE, {"variant": name}, metrics, void)


@contextmanager
def _scraped(plugin: Plugin) -> Iterator[None]:
    """Read the metrics over and over."""
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(SCRAPE_SECONDS):
            plugin.page("/metrics")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()
