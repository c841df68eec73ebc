"""The pool under every order of events that Hypothesis generates."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hsm_kms.errors import HsmKmsError, NonceBudgetError, TokenAbsentError
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.ends import End
from tests.harness.examples import examples
from tests.unit.token.pool_rig import CALL_TIMEOUT, Loop, Rig

CAUSES = ["session", "login", "device", "not-authentic", "ambiguous", "from the future"]
ENDS = ["die", "retire", "withdraw"]
which = st.integers(min_value=0, max_value=99)


class PoolMachine(RuleBasedStateMachine):
    """Requests, answers, deaths and the clock, in any order.

    `Rig` itself asserts that no request gets another's answer and that no session
    is lent while a call is under way on it.
    """

    @initialize(sessions=st.integers(min_value=1, max_value=3))
    def start(self, sessions):
        """A pool with one worker."""
        self.loop = Loop()
        self.closed = False
        self.requests = {}
        self.run(self._make())
        self.run(self.settled(lambda: self.rig.add(sessions)))

    async def _make(self):
        self.rig = Rig()

    def run(self, work):
        self.loop.run_until_complete(work)

    async def settled(self, action=None):
        if action is not None:
            action()
        await self.rig.settle()

    @rule(deadline=st.sampled_from([None, 0.0, 0.5, 1.5, 60.0]))
    def ask(self, deadline):
        """A request comes."""
        at = None if deadline is None else self.loop.now + deadline
        self.run(self.settled(lambda: self.new_request(at)))

    def new_request(self, deadline=None, before=None):
        self.requests[self.rig.call(deadline, before)] = self.loop.now

    @rule()
    def ask_in_vain(self):
        """A request comes that `before` refuses as soon as it has a session."""

        def refuse():
            raise NonceBudgetError("spent")

        self.run(self.settled(lambda: self.new_request(before=refuse)))

    @precondition(lambda self: self.rig.busy())
    @rule(number=which, cause=st.none() | st.sampled_from(CAUSES))
    def answer(self, number, cause):
        """A session answers, perhaps long after its request gave up."""
        busy = self.rig.busy()
        failure = cause and Failure(cause=cause)
        self.run(self.settled(lambda: busy[number % len(busy)].answer(failure)))

    @precondition(lambda self: self.rig.busy())
    @rule(number=which)
    def answer_something_else(self, number):
        """A session answers a request that nobody sent."""
        busy = self.rig.busy()
        self.run(self.settled(lambda: busy[number % len(busy)].answer(number=2**63)))

    @precondition(lambda self: self.pending())
    @rule(number=which)
    def cancel(self, number):
        """A client cancels its request."""
        pending = self.pending()
        self.run(self.settled(pending[number % len(pending)].cancel))

    @precondition(lambda self: self.rig.busy())
    @rule(
        number=which,
        steps=st.integers(min_value=0, max_value=5),
        end=st.sampled_from([None, *ENDS]),
        late=st.booleans(),
    )
    def cross(self, number, steps, end, late):
        """An answer comes; its session is handed on while clients or worker go."""

        async def cross():
            for _ in range(self.rig.pool.stats().idle + 2):
                self.new_request()
            await self.rig.settle()
            busy = self.rig.busy()
            session = busy[number % len(busy)]
            session.answer()
            for _ in range(steps):
                await asyncio.sleep(0)
            if end is not None:
                self.end(session.worker, end)
            if late:
                self.loop.now += CALL_TIMEOUT
            else:
                for task in self.pending():
                    task.cancel()
            await self.rig.settle()

        self.run(cross())

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.1, 2.1]))
    def wait(self, seconds):
        """Time passes."""
        self.loop.now += seconds
        self.run(self.settled())

    @rule(sessions=st.integers(min_value=1, max_value=3))
    def worker_comes(self, sessions):
        """Another worker comes; a closed pool does not add it."""
        self.run(self.settled(lambda: self.rig.add(sessions)))

    @precondition(lambda self: self.alive())
    @rule(number=which, end=st.sampled_from(ENDS))
    def worker_goes(self, number, end):
        """A worker dies, is retired, or is withdrawn."""
        alive = self.alive()
        self.run(self.settled(lambda: self.end(alive[number % len(alive)], end)))

    def end(self, worker, end):
        if end == "die":
            worker.die()
        elif end == "retire":
            worker.retire(End.CANARY)
        else:
            for session in worker.sessions:
                self.rig.pool.withdraw(session.channel)

    def alive(self):
        return [worker for worker in self.rig.workers if not worker.gone]

    def pending(self):
        return [task for task in self.requests if not task.done()]

    @rule()
    def cannot_start(self):
        """A worker could not be started."""
        error = TokenAbsentError("no token")
        self.run(self.settled(lambda: self.rig.pool.fail(error)))

    @rule()
    def canary_passes(self):
        """The token works again."""
        self.run(self.settled(self.rig.pool.breaker.close))

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self):
        """The server is told to stop."""
        self.closed = True
        self.run(self.settled(self.rig.pool.close))

    @invariant()
    def every_session_is_idle_or_busy(self):
        """Each session is either idle or busy, and is held once."""
        pool = getattr(self, "rig", None) and self.rig.pool
        if not pool:
            return
        idle, sessions = pool._idle, pool._sessions
        busy = {channel for channel in sessions if channel.busy_since is not None}
        dead = {channel for channel in sessions if not channel.lendable}
        assert len(idle) == len(set(idle))
        assert set(idle) <= sessions
        assert not busy & set(idle)
        assert sessions == set(idle) | busy | dead
        if self.closed:
            assert set() == sessions

    @invariant()
    def nobody_waits_beside_an_idle_session(self):
        """A request waits only while every session is busy."""
        if hasattr(self, "rig") and self.rig.pool.stats().waiting:
            assert not [c for c in self.rig.pool._idle if c.lendable]

    @invariant()
    def every_request_ends_in_time(self):
        """Each request gets its own answer or an error within `call_timeout`."""
        for task, since in getattr(self, "requests", {}).items():
            if not task.done():
                assert self.loop.now < since + CALL_TIMEOUT
            elif not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, HsmKmsError), error

    def teardown(self):
        """No request and no task remains after the pool is closed."""
        if not hasattr(self, "rig"):
            return
        self.run(self.settled(self.rig.close))
        self.loop.now += 60
        self.run(self.settled())
        assert not [task for task in self.requests if not task.done()]
        assert 0 == self.rig.pool.stats().waiting
        for task in self.requests:
            assert task.cancelled() or task.exception() or task.result()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


TestPool = PoolMachine.TestCase
TestPool.__doc__ = "No order of events breaks the pool's rules."
TestPool.settings = settings(
    max_examples=examples(30, 300),
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)
