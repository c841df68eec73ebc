"""Servers that several conformance tests share, each on a real token."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness.plugin import Plugin
from tests.harness.spy import Spy
from tests.system.conformance.clients import workers_of
from tests.system.conformance.inside import start_well
from tests.system.conformance.wrappings import apis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.softhsm import SoftHsm

USUAL = "token"  # where the wrapping makes no difference


@pytest.fixture(scope="session")
def serving(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Callable[[str], Plugin]]:
    """Servers by their wrapping, started when first asked for; they share the KEK."""
    made: dict[str, Plugin] = {}

    def start(wrapping: str) -> Plugin:
        hsm = keyed_template.copy(session_directory / f"served-{wrapping}")
        directory = hsm.directory / "p"
        directory.mkdir(mode=0o700)
        made[wrapping] = plugin = Plugin(
            directory, hsm, pin_file, apis=apis(wrapping), log={"level": "info"}
        )
        workers_of(start_well(plugin))
        return plugin

    yield lambda wrapping: made.get(wrapping) or start(wrapping)
    for plugin in made.values():
        plugin.close()


@pytest.fixture
def served(request: pytest.FixtureRequest, serving: Callable[[str], Plugin]) -> Plugin:
    """A healthy server for tests that do it no harm; see `each_wrapping`."""
    return serving(getattr(request, "param", USUAL))


@pytest.fixture
def mixed(make_plugin: Callable[..., Plugin], hsm: SoftHsm) -> Plugin:
    """A healthy server of this test's own: a local KEK wraps for v2, for v1 the token.

    Where no more than that is needed a test has both at the cost of one.
    """
    return start_well(make_plugin(hsm, apis=apis("software", v1="token")))


@pytest.fixture
def spied(
    directory: Path, hsm: SoftHsm, make_plugin: Callable[..., Plugin]
) -> tuple[Plugin, Spy]:
    """A server of one session, not started, and the record of its calls.

    The looks are so rare that after the start none is seen again.
    """
    return spied_on(make_plugin(hsm), hsm, directory / "spy")


@pytest.fixture(scope="module")
def watched(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[tuple[Plugin, Path]]:
    """The same, shared by tests that do it no harm, and the file of its calls."""
    hsm = keyed_template.copy(session_directory / "watched")
    directory = hsm.directory / "p"
    directory.mkdir(mode=0o700)
    file = hsm.directory / "spy"
    plugin, _ = spied_on(Plugin(directory, hsm, pin_file), hsm, file)
    yield plugin, file
    plugin.close()
    shutil.rmtree(hsm.directory)


def spied_on(plugin: Plugin, hsm: SoftHsm, file: Path) -> tuple[Plugin, Spy]:
    """Give a server one session, seldom looks, and a module that keeps a record."""
    try:
        spy = Spy(file)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    plugin.config |= {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}
    plugin.config["token"] |= {
        "module": spy.module,
        "env": hsm.env | spy.env,
        "workers": 1,
        "sessions_per_worker": 1,
    }
    plugin.write_config()
    return plugin, spy
