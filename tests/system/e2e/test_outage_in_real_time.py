"""When kube-apiserver stops writing in an outage, and what goes on, in real time.

One API server with a provider for each way to fail: a Status that is UNAVAILABLE, a
Status with an error message, and no Status at all. docs/operations.md has the results.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from hsm_kms.clock import now
from tests.harness.wait import patient
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.page import logged, shown
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import Client, configuration, kms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800, func_only=True)]

DEADLINE = 180.0  # seconds: kube-apiserver writes so long after the last good Status
STOP_AFTER = 20  # seconds: `health.stop_writes_after`
LATE = 30.0  # seconds that a refusal may come later, on a slow machine
NOTICED = 120.0  # seconds; kube-apiserver asks again after 10
RECONNECTED = 300.0  # seconds; its client pauses for 144 at most before it connects
NAMESPACE = "/api/v1/namespaces/default"
WITHOUT = "/readyz?exclude=kms-providers"

EXPIRED = "Internal error occurred: encryptedDEKSource with keyID hash"

STOPPED, TOLD, KILLED = "secrets", "configmaps", "limitranges"  # each has a provider
BODIES: dict[str, dict[str, Any]] = {
    STOPPED: {"stringData": {"text": "text"}},
    TOLD: {"data": {"text": "text"}},
    KILLED: {"spec": {"limits": []}},
}


@dataclass(frozen=True, slots=True)
class Write:
    """One attempt to create an object; times are seconds since the Unix epoch."""

    began: float
    ended: float
    message: str  # "" if it succeeded


class TimedWriter(Client):
    """Creates one object of a resource after the other, and notes what happens."""

    def __init__(self, api: ApiServer, resource: str) -> None:
        self.writes: list[Write] = []
        self._api = api
        self._resource = resource
        names = (f"w-{number}" for number in itertools.count())
        super().__init__(names, self._create, expected=201, pause=0.2)

    def _create(self, name: str) -> tuple[int, bytes]:
        body = {**named(name), **BODIES[self._resource]}
        began = now()
        path = f"{NAMESPACE}/{self._resource}"
        status, answer = self._api.request("POST", path, body)
        message = "" if status == 201 else json.loads(answer)["message"]
        self.writes.append(Write(began, now(), message))
        return status, answer

    @property
    def refused(self) -> Write | None:
        """Return the first write that failed."""
        return next((each for each in self.writes if each.message), None)

    @property
    def works(self) -> bool:
        """Return True if the last write succeeded."""
        return bool(self.writes) and not self.writes[-1].message


def named(name: str) -> dict[str, Any]:
    """Return the metadata of an object."""
    return {"metadata": {"name": name}}


class Outage:
    """An API server, and a plugin with a token of its own for each resource."""

    def __init__(self, binaries: Binaries, folder: Path) -> None:
        self.plugins = {name: Plugin(folder / name) for name in BODIES}
        self.plugins[STOPPED].configure(health={"stop_writes_after": f"{STOP_AFTER}s"})
        self.etcd = Etcd(binaries, folder)
        self.api = ApiServer(binaries, self.etcd, folder)
        self._encryption = folder / "encryption.json"

    def start(self) -> None:
        """Start all of it, with the default timeout of kube-apiserver."""
        for plugin in self.plugins.values():
            plugin.start()
        each = {
            name: [kms("v2", name, plugin.socket)]
            for name, plugin in self.plugins.items()
        }
        self._encryption.write_text(json.dumps(configuration(each)))
        self.api.start(self._encryption, "-v=2")

    def stop(self) -> None:
        """Stop all of it."""
        self.api.stop()
        self.etcd.stop()
        for plugin in self.plugins.values():
            plugin.stop()

    def status(self, name: str) -> dict[str, Any]:
        """Return what the plugin of a resource says about itself."""
        return self.plugins[name].server()

    def last_status(self, name: str) -> float:
        """Return when a plugin last answered Status, in whole seconds."""
        return datetime.fromisoformat(self.status(name)["last_status"]).timestamp()

    def answers(self, *paths: str) -> list[int]:
        """Return the status codes of GET."""
        return [self.api.get(path)[0] for path in paths]

    def wait(self, what: str, check: Callable[[], object], seconds: float) -> float:
        """Ask for readiness, as a kubelet does, until it is so; return when that is."""

        def checked() -> object:
            self.api.get("/readyz")
            return check()

        wait_for(what, checked, timeout=seconds, every=1)
        return now()


@pytest.fixture
def outage(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Outage]:
    """All is well at first."""
    made = Outage(binaries, new_folder())
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_writes_stop_three_minutes_after_the_last_status(outage):
    """Without Status new objects are refused three minutes later, and not before.

    With a Status that has a key_id they are not, whatever its healthz says. Reads and
    deletions go on, and all is well again by itself.
    """
    api, plugins = outage.api, outage.plugins
    writers = {name: TimedWriter(api, name) for name in BODIES}
    with writers[STOPPED], writers[TOLD], writers[KILLED]:
        outage.wait("writes", lambda: all(w.works for w in writers.values()), NOTICED)
        last = {KILLED: outage.last_status(KILLED)}
        plugins[KILLED].kill()
        with plugins[STOPPED].outage(), plugins[TOLD].outage():
            told = outage.wait(
                "a message", lambda: outage.status(TOLD)["state"] == "failed", NOTICED
            )
            silent = outage.wait(
                "UNAVAILABLE",
                lambda: not outage.status(STOPPED)["status_available"],
                NOTICED,
            )
            last[STOPPED] = outage.last_status(STOPPED)
            outage.wait(
                "refusals",
                lambda: writers[STOPPED].refused and writers[KILLED].refused,
                DEADLINE + NOTICED,
            )
            _look(outage)
            end = told + DEADLINE + LATE
            outage.wait("writes after that", lambda: now() > end, DEADLINE)
            refused = {name: writers[name].refused for name in last}
        restored = now()
        plugins[KILLED].start()
        again = {
            name: outage.wait("writes", lambda w=writers[name]: w.works, RECONNECTED)
            for name in (STOPPED, KILLED)
        }
        wait_for("ready", lambda: api.get("/readyz")[0] == 200, timeout=NOTICED)

    for writer in writers.values():
        assert len(writer.writes) == len(writer.names), writer.failures
    for name, write in refused.items():
        assert write.ended >= last[name] + DEADLINE
        assert write.began < last[name] + DEADLINE + patient(LATE)
        assert write.message.startswith(EXPIRED)
        _tell(
            f"{name}: refused {write.began - last[name]:.1f} s after the last Status, "
            f"created again {again[name] - restored:.1f} s after the outage"
        )
    _tell(
        f"{STOPPED}: refused {refused[STOPPED].began - silent:.1f} s after UNAVAILABLE"
    )
    _tell(f"{TOLD}: {len(writers[TOLD].writes)} created in {now() - told:.0f} s")
    assert None is writers[TOLD].refused
    log = api.logged()
    for case in ("`health.stop_writes_after` has passed", "the plugin does not run"):
        assert [] == [line for line in logged(case) if line not in log], case
    (line,) = shown("Writes are refused, and reads go on")
    assert line.startswith(f"Error from server: {EXPIRED}")


def _tell(line):
    sys.stdout.write(f"{line}\n")


def _look(outage):
    """Look at what goes on while new objects are refused."""
    api, object_ = outage.api, f"{NAMESPACE}/{STOPPED}/w-0"
    assert [500, 200, 200] == outage.answers("/readyz", WITHOUT, "/livez")
    lists = [f"{NAMESPACE}/{name}" for name in BODIES]
    assert [200] * 4 == outage.answers(object_, *lists)
    changed = {"stringData": {"text": "changed"}}
    assert 500 == api.request("PUT", object_, {**changed, **named("w-0")})[0]
    assert 200 == api.request("DELETE", object_)[0]
    namespace = api.request("POST", "/api/v1/namespaces", named("not-encrypted"))
    assert 201 == namespace[0]
