"""A server on the fault shim, and what processes, probes, metrics and status show."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.harness.plugin import get
from tests.harness.wait import SECONDS, wait_for, wait_quiet

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim
    from tests.harness.softhsm import SoftHsm

HOT = ("C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
NO_CANARY = b"f" * 77  # of a length that no canary has
# Soon enough for tests of hanging calls, and more than what a busy machine needs.
QUICK = {"call_timeout": "1500ms", "hang_timeout": "4s", "start_timeout": "6s"}

_SAMPLE = re.compile(r"^(hsm_kms_\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class ObservedServer:
    """A server, its token, and the shim between them."""

    plugin: Plugin
    hsm: SoftHsm
    shim: Shim

    def start(self, *, spawn: bool = False) -> None:
        """Start the server, and wait until it can be looked at."""
        event = "listening for HTTP"
        began = len(self.plugin.events(event))
        self.plugin.start(spawn=spawn)
        process = self.plugin.process
        wait_for(
            lambda: (
                len(self.plugin.events(event)) == began + 2
                or process.poll() is not None
            )
        )
        assert process.poll() is None, self.plugin.log()

    def get(self, path: str) -> tuple[int, str]:
        """Return status code and body of a page of the probes and metrics."""
        port = self.plugin.http_port()
        return get(http.client.HTTPConnection("127.0.0.1", port, SECONDS), path)

    def metrics(self) -> dict[str, float]:
        """Return the values of our own metrics, by name and labels."""
        code, text = self.plugin.page("/metrics")
        assert 200 == code
        return {
            name + (labels or ""): float(value)
            for name, labels, value in _SAMPLE.findall(text)
        }

    def wait_calls_counted(self) -> None:
        """Wait until the metrics have each call of `HOT` that the module saw."""
        name = 'hsm_kms_pkcs11_calls_total{{function="{}"}}'

        def counted() -> bool:
            seen = self.metrics()
            return all(
                self.shim.calls(each) == seen.get(name.format(each), 0) for each in HOT
            )

        wait_for(counted)

    def wait_breaker_open(self) -> None:
        """Encrypt `NO_CANARY`, which the shim lets fail, until the breaker opens.

        The requests are sent together: each canary between two of them begins the
        count anew.
        """
        wait_for(
            lambda: (
                "UNAVAILABLE" in self.plugin.encrypt_at_once(NO_CANARY, 16)
                and self.plugin.events("breaker open")
            )
        )

    def admin(self) -> dict[str, Any]:
        """Return what the admin socket serves at /status."""
        code, text = self.plugin.page("/status")
        assert 200 == code
        return json.loads(text)

    def ends(self, reason: str) -> int:
        """Return how many workers ended for this reason."""
        return int(self.admin()["workers"]["ended"].get(reason, 0))

    def reopened(self) -> int:
        """Return the number of sessions opened since the start of their workers.

        That of the fresh worker which lists the keys once a minute does not count.
        """
        counts = self.shim.counts()
        return counts["C_OpenSession"].calls - counts["C_Initialize"].calls

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers now, a fresh one that lists the keys included."""
        return self.plugin.worker_pids()

    @property
    def past_login(self) -> list[int]:
        """Process ids of the workers that are past their login.

        SoftHSM rewrites the token's file in C_Login, and a kill there can lose the
        token.
        """
        opened = self.shim.sessions()
        return [pid for pid in self.worker_pids if opened.get(pid, 0) > 1]

    def kill_served(self) -> None:
        """SIGKILL every worker that is past its login."""
        for pid in self.past_login:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        """Wait until all workers serve, and no other is there; return their pids."""
        wanted = self.plugin.workers

        def all_serve() -> list[int] | None:
            pids = self.plugin.worker_pids()
            ready = self.admin()["workers"]["ready"]
            return pids if ready == len(pids) == wanted else None

        found: list[int] = wait_for(all_serve)
        return found

    def wait_inspected(self) -> None:
        """Wait until the inspections that follow the start of each worker are over.

        A round begins after the last start. With one worker, the canary that passes
        then is its end; other workers follow without a pause.
        """
        starts = self.plugin.events("token worker started")
        last = max(datetime.fromisoformat(each["timestamp"]) for each in starts)
        name = "hsm_kms_canary_last_success_timestamp_seconds"
        wait_for(lambda: self.metrics()[name] > last.timestamp())
        if self.plugin.workers > 1:
            wait_quiet(self.shim.counts, 1.0)

    def well(self, seconds: float = SECONDS) -> None:
        """Wait until Status is ok and all workers serve; a spare one may be there."""
        self.plugin.wait_healthz("ok", seconds)
        wanted = self.plugin.workers
        wait_for(lambda: self.admin()["workers"]["ready"] >= wanted, seconds)
