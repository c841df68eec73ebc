"""Run a pool on real socket pairs whose other ends the test answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from hsm_kms.ipc import framing
from hsm_kms.ipc.messages import Failure, FindKeys, Random
from hsm_kms.token.channel import Channel
from hsm_kms.token.counts import Counts
from hsm_kms.token.pool import Pool
from tests.harness.served import FaultLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.ends import End

SESSION_WAIT = 1.0
CALL_TIMEOUT = 2.0


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until the test moves it."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class PeerSession:
    """The worker's end of one pair, and the request that it has not answered yet."""

    def __init__(self, worker: PeerWorker) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.channel = Channel(ours, worker.lost, worker.retire)
        self.worker = worker
        self.asked: tuple[int, str] | None = None

    def take(self) -> None:
        """Read the next request; fail if one is unanswered."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while datagram := self.socket.recv(framing.MAX_MESSAGE_BYTES):
                assert self.asked is None, "lent while a call was under way"
                number, request = framing.unpack_request(memoryview(datagram))
                label = request.label if isinstance(request, FindKeys) else ""
                self.asked = number, label

    def answer(self, failure: Failure | None = None, *, number: int = 0) -> None:
        """Answer the request with an echo, or with this failure."""
        assert self.asked is not None
        asked, label = self.asked
        self.asked = None
        reply = failure or Random(data=b"another's" if number else label.encode())
        with contextlib.suppress(BrokenPipeError):
            self.socket.send(framing.pack_reply(number or asked, reply))


class PeerWorker:
    """A worker's sessions, which come and go together."""

    def __init__(self, rig: Rig, sessions: int) -> None:
        self.gone = False
        self.retired: list[End] = []
        self.sessions = [PeerSession(self) for _ in range(sessions)]
        for session in self.sessions:
            rig.pool.add(session.channel)

    def lost(self, why: str) -> None:
        """Close all sessions when one is lost, as `token.process.Worker` does."""
        self.gone = True
        for session in self.sessions:
            session.channel.close()
            session.socket.close()
            session.asked = None

    def retire(self, why: End) -> None:
        """Stop lending the sessions, as `token.process.Worker` does."""
        self.retired.append(why)
        for session in self.sessions:
            session.channel.retiring = True

    def die(self) -> None:
        """Close the worker's ends; the server has not noticed yet."""
        for session in self.sessions:
            session.socket.close()
            session.asked = None


class Rig:
    """A pool, its workers, and the requests under way."""

    def __init__(self) -> None:
        self.alarm = FaultLog()
        self.counts = Counts()
        self.pool = Pool(
            session_wait=SESSION_WAIT,
            call_timeout=CALL_TIMEOUT,
            alarm=self.alarm,
            counts=self.counts,
        )
        self.workers: list[PeerWorker] = []
        self.asked = 0

    def add(self, sessions: int) -> PeerWorker:
        """Add a worker with this many sessions."""
        worker = PeerWorker(self, sessions)
        self.workers.append(worker)
        return worker

    def call(
        self,
        deadline: float | None = None,
        before: Callable[[], None] | None = None,
    ) -> asyncio.Task[str]:
        """Start a request with a label of its own; the task returns that label."""
        self.asked += 1
        label = f"request {self.asked}"
        return asyncio.ensure_future(self._call(label, deadline, before))

    async def _call(
        self,
        label: str,
        deadline: float | None,
        before: Callable[[], None] | None,
    ) -> str:
        request = FindKeys(label=label)
        reply = await self.pool.call(request, deadline=deadline, before=before)
        assert isinstance(reply, Random)
        assert label == reply.data.decode(), "somebody else's answer"
        return label

    def send(self, request: Request) -> asyncio.Task[Reply]:
        """Start this request; the task returns its reply."""
        return asyncio.ensure_future(self.pool.call(request, deadline=None))

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        # A session passes from one request that waits to the next in a few rounds.
        for _ in range(8 + 4 * len(asyncio.all_tasks())):
            await asyncio.sleep(0)
            for session in self.sessions():
                session.take()

    def sessions(self) -> list[PeerSession]:
        """Return the sessions of all workers that are not gone."""
        return [
            session
            for worker in self.workers
            for session in worker.sessions
            if session.socket.fileno() >= 0
        ]

    def busy(self) -> list[PeerSession]:
        """Return the sessions that have a request to answer."""
        return [session for session in self.sessions() if session.asked]

    def close(self) -> None:
        """Close the pool and all sockets."""
        self.pool.close()
        for worker in self.workers:
            worker.lost("end of the test")


async def later(rig, seconds):
    """Move the clock."""
    rig.now[0] += seconds
    await rig.settle()


async def one_busy(rig, sessions=1):
    """Add a worker and start one request on it."""
    worker = rig.add(sessions)
    task = rig.call()
    await rig.settle()
    return worker, task
