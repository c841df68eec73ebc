"""Reloads, refusals, kills, restarts and outages of a real server, in any order.

Whatever happens: what was answered OK decrypts; Status is ok exactly when a round trip
works; a request fails only in an outage, or if its worker was killed under it; and the
process ends in time when it is told to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.harness.examples import examples
from tests.harness.plugin import code_of
from tests.harness.wait import patient, wait_for
from tests.system.faults.excuses import CODES, Excuses
from tests.system.faults.load import Load
from tests.system.faults.subject import Subject

HISTORIES, EACH = examples(1, 4), 16
STOP_SECONDS = patient(3.0)
WELL_SECONDS = 120.0  # after many ends there is a backoff
STREAMS = 2
SLOW = "* sleep=30"


class ServerMachine(RuleBasedStateMachine):
    """A server, what it has encrypted so far, and what happens to it.

    Args:
        keyed: A token with a key.
        empty: The same token without it.
        pin_file: Its PIN.
        setenv: Sets a variable of the environment.

    Attributes:
        lost: The token has no key.
        hung: The disk of the state directory hangs.
        refused: The configuration file is faulty.
        calm: Nothing is wrong, and nothing was since all was well.
        excuses: When requests may have failed.
    """

    def __init__(self, keyed, empty, pin_file, setenv):
        super().__init__()
        self.subject = Subject(keyed, pin_file, setenv)
        self.directory, self.hsm = self.subject.directory, self.subject.hsm
        self.empty, self.rig, self.disk = empty, self.subject.rig, self.subject.disk
        self.load = Load(self.rig.plugin, STREAMS)
        self.replaced = 0
        self.lost = self.hung = self.refused = self.calm = False
        self.excuses = Excuses()

    @initialize()
    def start(self):
        """All is well."""
        self.trouble()
        self.rig.start(spawn=True)
        self.load.__enter__()
        self.settle()

    # What is always true

    @invariant()
    def decrypts(self):
        """What was answered OK decrypts, unless the token cannot be used."""
        for one in self.subject.made[-2:] + self.subject.made[:2]:
            code = code_of(lambda one=one: self.subject.open(one))
            assert code == "OK" or (code in CODES and not self.calm), code

    @invariant()
    def status_tells_the_truth(self):
        """Status is ok exactly when a round trip works, as soon as it is known."""
        if not self.load.sent:
            return
        if self.calm:
            assert ("ok", "OK") == (
                self.rig.plugin.healthz(),
                self.subject.round_trip(),
            )
        else:
            wait_for(self.subject.agree, WELL_SECONDS)
        if self.lost:
            wait_for(lambda: self.rig.plugin.healthz() != "ok", WELL_SECONDS)

    # The configuration

    def trouble(self):
        """From now on requests may fail."""
        self.excuses.begin()
        self.calm = False

    @precondition(lambda self: not self.refused)
    @rule()
    def reload(self):
        """Apply another configuration, with workers of its own."""
        token = self.rig.plugin.config["token"]
        token["sessions_per_worker"] = 1 + token["sessions_per_worker"] % 3
        self.subject.write()
        if self.calm and not self.hung:
            wait_for(self.subject.has_all_sessions)
        # Otherwise it is applied sooner or later: `settle` waits for that.

    @precondition(lambda self: not self.refused)
    @rule(
        text=st.sampled_from(["version: 2\n", "version: 1\nkeys: {label: a, x: b}\n"])
    )
    def refuse(self, text):
        """Find a faulty file."""
        self.subject.write(text)
        self.refused = True
        wait_for(lambda: not self.subject.in_force())

    @precondition(lambda self: self.refused)
    @rule()
    def take_back(self):
        """Find the file mended."""
        self.subject.write()
        self.refused = False
        if self.calm and not self.hung:
            wait_for(self.subject.has_all_sessions)

    # Process and workers

    @rule()
    def kill(self):
        """Kill a worker; the other one goes on."""
        if self.calm and not self.hung:
            wait_for(self.rig.workers)
        else:
            self.trouble()
        if served := self.rig.past_login:
            before = self.rig.ends("lost")
            self.excuses.kills.append(time.monotonic())
            with contextlib.suppress(ProcessLookupError):
                os.kill(served[0], signal.SIGKILL)
            wait_for(lambda: served[0] not in self.rig.worker_pids)
            if self.calm:  # otherwise it may have been leaving, and ends as such
                wait_for(lambda: self.rig.ends("lost") > before)
        if self.calm:
            self.rig.well(WELL_SECONDS)

    @precondition(lambda self: not self.refused)
    @rule()
    def restart(self):
        """Stop in time, whatever is the matter, and start again."""
        self.trouble()
        self.stop()
        self.release()
        self.rig.start(spawn=True)

    def stop(self):
        """SIGTERM: the process ends in time."""
        began = time.monotonic()
        assert 0 == self.rig.plugin.stop()
        self.excuses.stops.append((began, time.monotonic()))
        assert time.monotonic() - began < STOP_SECONDS

    # Token and disk

    @precondition(lambda self: not self.lost)
    @rule()
    def lose_key(self):
        """The token is replaced by one without keys."""
        self.trouble()
        self.replaced += 1
        empty = self.empty.copy(self.directory / f"empty{self.replaced}")
        self.hsm.take_away()
        empty.tokens.rename(self.hsm.tokens)
        self.lost = True

    @precondition(lambda self: self.lost)
    @rule()
    def return_key(self):
        """The token is there again."""
        self.hsm.tokens.rename(self.directory / f"replaced{self.replaced}")
        self.hsm.put_back()
        self.lost = False

    @rule()
    def slow_token(self):
        """Every call takes some time from now on."""
        self.rig.shim.set(SLOW)

    @rule()
    def quick_token(self):
        """The token is quick again."""
        self.rig.shim.clear()

    @precondition(lambda self: not self.hung)
    @rule()
    def slow_disk(self):
        """Nothing can be written to the state directory."""
        self.disk.hang()
        self.hung = True

    @rule()
    def release(self):
        """The disk goes on."""
        if self.hung:
            self.disk.release()
            self.hung = False

    @precondition(lambda self: not (self.lost or self.hung or self.refused))
    @rule()
    def settle(self):
        """All is well, after a while."""
        self.subject.write()
        wait_for(self.subject.has_all_sessions, WELL_SECONDS)
        self.rig.well(WELL_SECONDS)
        self.load.wait_well(time.monotonic())
        self.excuses.end()
        self.calm = True

    # At the end

    def teardown(self):
        """All is well: everything ever encrypted decrypts, and no failure is left."""
        try:
            if self.rig.plugin.process is not None:
                self._end()
        finally:
            if self.load.sent:
                self.load.__exit__()
            self.rig.plugin.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self):
        self.release()
        if self.lost:
            self.return_key()
        if self.refused:
            self.take_back()
        self.settle()
        for one in self.subject.made:
            self.subject.open(one)
        self.load.__exit__()
        self.stop()
        assert [] == self.load.wrong
        assert [] == self.excuses.missing(self.load.failures())


@pytest.fixture
def machine(keyed_template, token_template, pin_file, monkeypatch):
    """Makes machines, on copies of one token."""
    return partial(
        ServerMachine, keyed_template, token_template, pin_file, monkeypatch.setenv
    )


@pytest.mark.slow
@pytest.mark.timeout(patient(300 * HISTORIES))
def test_whatever_happens_to_a_server(machine):
    """No order of events loses what was encrypted, or makes Status untrue."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=EACH,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # no history comes twice: there is a clock in it
            suppress_health_check=list(HealthCheck),
        ),
    )
