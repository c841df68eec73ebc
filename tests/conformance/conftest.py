"""Servers that several conformance tests share, each on a real token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.clients import workers_of
from tests.odd_keys import Spy
from tests.support import Plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support import SoftHsm


@pytest.fixture(scope="session")
def served(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Plugin]:
    """A healthy server for tests that do it no harm."""
    hsm = keyed_template.copy(session_directory / "served")
    directory = hsm.directory / "p"
    directory.mkdir(mode=0o700)
    plugin = Plugin(directory, hsm, pin_file, log={"level": "info"})
    plugin.start().wait_healthz("ok")
    workers_of(plugin)
    yield plugin
    plugin.close()


@pytest.fixture
def spied(
    directory: Path, hsm: SoftHsm, make_plugin: Callable[..., Plugin]
) -> tuple[Plugin, Spy]:
    """A server of one session, not started, and the record of its calls.

    The looks are so rare that after the start none is seen again.
    """
    try:
        spy = Spy(directory / "spy")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    rarely = {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}
    plugin = make_plugin(hsm, **rarely)
    plugin.config["token"] |= {
        "module": spy.module,
        "env": hsm.env | spy.env,
        "workers": 1,
        "sessions_per_worker": 1,
    }
    plugin.write_config()
    return plugin, spy
