"""Fixtures: a token with one key, made once and copied; a server on it."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.harness import fork_server
from tests.harness.clock.driver import Clock
from tests.harness.examples import examples
from tests.harness.plugin import PINS, Plugin, beside
from tests.harness.required import REQUIRED
from tests.harness.shim.driver import Shim
from tests.harness.softhsm import PIN, SoftHsm
from tests.harness.spelled import found
from tests.harness.wait import patient
from tests.unit.token.pool_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A busy machine takes any time for an example; pytest's own timeout is enough.
settings.register_profile(
    "tests",
    deadline=None,
    max_examples=examples(30, 300),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

os.environ.setdefault("PYTEST_TIMEOUT", str(patient(300)))  # pytest-timeout reads it


def pytest_configure() -> None:
    """Prepare the process of the tests: logging, and signals that are ignored.

    A shell without job control starts what ends in "&" with SIGINT ignored, and nohup
    starts a program with SIGHUP ignored. Every process inherits that, but no handler.
    """
    structlog.configure()  # or the first event of a test would configure all others
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_unconfigure() -> None:
    """End the processes that this one started to fork servers from."""
    fork_server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turn a skip into a failure where everything optional is required."""
    report = yield
    if report.skipped and "all" in REQUIRED and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and HSM_KMS_REQUIRE=all: {report.longrepr}"
    return report


def _short_directory() -> Iterator[Path]:
    # Not tmp_path: a socket's path has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="hsm-kms-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A private directory with a short path."""
    yield from _short_directory()


@pytest.fixture(scope="session")
def session_directory() -> Iterator[Path]:
    """The same for the whole run of this process."""
    yield from _short_directory()


@pytest.fixture
def clock(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clocks of all processes that the test spawns."""
    made = Clock(directory)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def held_port() -> Iterator[int]:
    """A TCP port that the kernel gives to nobody else.

    It is bound, and a server that sets SO_REUSEADDR can still listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="session")
def pin_file(session_directory: Path) -> Path:
    """The right PIN, in a file that is old enough to be read at once."""
    path = session_directory / "pin"
    path.touch(mode=0o600)
    path.write_text(PIN + "\n")
    return path


@pytest.fixture(scope="session")
def token_template(session_directory: Path) -> SoftHsm:
    """A token without a key."""
    hsm = SoftHsm(session_directory / "empty")
    hsm.init_token()
    return hsm


@pytest.fixture(scope="session")
def keyed_template(
    session_directory: Path, token_template: SoftHsm, pin_file: Path
) -> SoftHsm:
    """A token with one KEK, made by the command line."""
    hsm = token_template.copy(session_directory / "keyed")
    plugin = Plugin(session_directory, hsm, pin_file)
    result = plugin.cli("keys", "generate")
    assert result.returncode == 0, result.stderr
    return hsm


@pytest.fixture
def empty_hsm(directory: Path, token_template: SoftHsm) -> SoftHsm:
    """A token of this test's own, without a key."""
    return token_template.copy(directory / "empty")


@pytest.fixture
def hsm(directory: Path, keyed_template: SoftHsm) -> SoftHsm:
    """A token of this test's own, with one KEK."""
    return keyed_template.copy(directory / "hsm")


@pytest.fixture
def make_plugin(directory: Path, pin_file: Path) -> Iterator[Callable[..., Plugin]]:
    """Make servers, not started yet; all are stopped at the end."""
    made: list[Plugin] = []

    def make(hsm: SoftHsm, name: str = "p", **sections: object) -> Plugin:
        own = directory / f"{name}{len(made)}"
        own.mkdir(mode=0o700)
        plugin = Plugin(own, hsm, pin_file, **sections)
        made.append(plugin)
        return plugin

    yield make
    for plugin in made:
        plugin.close()
    assert [set()] * len(made) == [found(PINS, plugin.log()) for plugin in made]


@pytest.fixture
def plugin(make_plugin: Callable[..., Plugin], hsm: SoftHsm) -> Plugin:
    """A running, healthy server on a token with one KEK."""
    started = make_plugin(hsm).start()
    started.wait_healthz("ok")
    return started


@pytest.fixture
def shim(directory: Path) -> Shim:
    """A shim that does nothing yet."""
    return Shim(directory)


@pytest.fixture(scope="session")
def shared_server(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Plugin]:
    """A healthy server for tests that only ask it; it has the KEK of `hsm`."""
    hsm = keyed_template.copy(session_directory / "shared")
    plugin = beside(hsm, pin_file)
    try:
        plugin.start().wait_healthz("ok")
        yield plugin
    finally:
        plugin.close()


@pytest.fixture
async def rig(monkeypatch):
    """A pool without sessions; the loop's clock stands until the test moves it."""
    loop = asyncio.get_running_loop()
    now = [float(math.ceil(loop.time()))]  # whole seconds add up exactly
    monkeypatch.setattr(loop, "time", lambda: now[0])
    made = Rig()
    made.now = now
    yield made
    made.close()
