"""Servers that several conformance tests share, each on a real token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.plugin import Plugin, beside
from tests.harness.wait import patient
from tests.system.conformance.clients import workers_of
from tests.system.conformance.inside import PATIENT, start_well
from tests.system.conformance.spied import Spied
from tests.system.conformance.wrappings import apis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.softhsm import SoftHsm

USUAL = "token"  # where the wrapping makes no difference

# In "fallback" tests wait this long until a local KEK wraps for a token that hangs.
TAKES_OVER = {"session_wait": f"{patient(3.0):g}s"}


@pytest.fixture(scope="session")
def serving(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Callable[[str], Plugin]]:
    """Servers by wrapping mode, started when first asked for; they share the KEK."""
    made: dict[str, Plugin] = {}

    def start(wrapping: str) -> Plugin:
        made[wrapping] = plugin = beside(
            keyed_template.copy(session_directory / f"served-{wrapping}"),
            pin_file,
            apis=apis(wrapping),
            log={"level": "info"},
            token=PATIENT | (TAKES_OVER if wrapping == "fallback" else {}),
        )
        workers_of(start_well(plugin))
        return plugin

    yield lambda wrapping: made.get(wrapping) or start(wrapping)
    for plugin in made.values():
        plugin.close()


@pytest.fixture
def served(request: pytest.FixtureRequest, serving: Callable[[str], Plugin]) -> Plugin:
    """A healthy server that no test harms; see `each_wrapping`."""
    return serving(getattr(request, "param", USUAL))


@pytest.fixture
def mixed(
    request: pytest.FixtureRequest, make_plugin: Callable[..., Plugin], hsm: SoftHsm
) -> Plugin:
    """A healthy server of this test's own: a local KEK wraps for v2, the token for v1.

    It tests both wrapping modes at the cost of one server. With the parameter "spawn"
    its process is not a fork.
    """
    spawn = getattr(request, "param", None) == "spawn"
    return start_well(make_plugin(hsm, apis=apis("software", v1="token")), spawn=spawn)


@pytest.fixture(scope="session")
def spied(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Spied]:
    """A server whose calls into the module are counted; no test harms it."""
    hsm = keyed_template.copy(session_directory / "spied")
    plugin = beside(hsm, pin_file)
    try:
        yield Spied(plugin, hsm.directory / "spy")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    finally:
        plugin.close()
