"""A channel whose peer follows the protocol, and one whose peer does not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hsm_kms.errors import WorkerLostError
from hsm_kms.ipc import framing
from hsm_kms.ipc.messages import Decrypted, Done, FindKeys, OpenSession
from hsm_kms.token.channel import Channel
from tests.harness.wait import patient, until


class Peer:
    """The worker's end of a pair, driven by the test."""

    def __init__(self):
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(patient())
        self.lost = []
        self.channel = Channel(ours, self.lost.append)

    def take(self):
        """Return number and request of the next datagram."""
        datagram = self.socket.recv(framing.MAX_MESSAGE_BYTES)
        return framing.unpack_request(memoryview(datagram))

    def answer(self, number, reply):
        self.socket.send(framing.pack_reply(number, reply))


@pytest.fixture
async def peer():
    """A channel and its other end."""
    made = Peer()
    yield made
    made.channel.close()
    made.socket.close()


async def lost_with(peer, future):
    """Return why the channel was lost during an exchange."""
    with pytest.raises(WorkerLostError, match="the token worker is gone"):
        await asyncio.wait_for(future, patient())
    assert not peer.channel.lendable
    assert peer.channel.busy_since is None
    assert 1 == len(peer.lost)
    return peer.lost[0]


async def test_exchange(peer):
    """A request is sent with a number and gets its reply."""
    future = peer.channel.exchange(OpenSession())
    assert peer.channel.busy_since is not None
    assert (1, OpenSession()) == peer.take()
    peer.answer(1, Done())

    assert Done() == await future
    assert peer.channel.busy_since is None
    assert [] == peer.lost


async def test_numbers_go_up(peer):
    """Each request has the next number."""
    for number in (1, 2, 3):
        future = peer.channel.exchange(OpenSession())
        assert number == peer.take()[0]
        peer.answer(number, Done())
        await future


async def test_one_request_at_a_time(peer):
    """A second request while one is under way is refused as a bug, and not sent."""
    peer.channel.exchange(OpenSession())
    with pytest.raises(AssertionError):
        peer.channel.exchange(OpenSession())

    assert 1 == peer.take()[0]
    peer.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.socket.recv(10)


@pytest.mark.parametrize("number", [0, 2, 2**64 - 1])
async def test_another_number(peer, number):
    """A reply with another number ends the channel."""
    future = peer.channel.exchange(OpenSession())
    peer.answer(number, Decrypted(plaintext=b"another's"))

    assert "the worker answered a request that was not sent" == await lost_with(
        peer, future
    )


async def test_unasked(peer):
    """A message while no request is under way ends the channel."""
    peer.answer(0, Done())
    await until(lambda: peer.lost)

    assert ["the worker answered a request that was not sent"] == peer.lost
    with pytest.raises(WorkerLostError):
        peer.channel.exchange(OpenSession())


async def test_answered_twice(peer):
    """A second reply to one request ends the channel and reaches no caller."""
    future = peer.channel.exchange(OpenSession())
    peer.answer(1, Done())
    peer.answer(1, Decrypted(plaintext=b"late"))
    assert Done() == await future
    await until(lambda: peer.lost)

    assert ["the worker answered a request that was not sent"] == peer.lost


async def test_end(peer):
    """A closed peer is reported once, and fails the request under way."""
    future = peer.channel.exchange(OpenSession())
    peer.socket.close()

    assert "the worker closed its end" == await lost_with(peer, future)


async def test_end_while_idle(peer):
    """An idle channel reports that its peer has closed."""
    peer.socket.close()
    await until(lambda: peer.lost)

    assert ["the worker closed its end"] == peer.lost


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x00",
        b"\x00" * 8,
        (1).to_bytes(8, "big") + b"\xc1",
        (1).to_bytes(8, "big") + b"\x81\xa4type\xa7Unknown",
        framing.pack_reply(1, Done()) + b"\x00",
        framing.pack_reply(1, Done())[:-1],
        framing.pack(1, OpenSession()),
        b"\xff" * (framing.MAX_MESSAGE_BYTES + 1),
        framing.pack_reply(1, Decrypted(plaintext=b"x" * framing.MAX_MESSAGE_BYTES)),
    ],
    ids=[
        "one byte",
        "no body",
        "no msgpack",
        "unknown type",
        "trailing byte",
        "cut short",
        "a request",
        "too long",
        "too long, but well formed",
    ],
)
async def test_garbage(peer, datagram):
    """A datagram that is no reply ends the channel."""
    future = peer.channel.exchange(OpenSession())
    peer.socket.send(datagram)

    assert "the worker sent a malformed message" == await lost_with(peer, future)


async def test_longest_reply(peer):
    """A reply just below the size limit arrives whole."""
    future = peer.channel.exchange(OpenSession())
    reply = Decrypted(plaintext=bytes(range(256)) * 639)
    assert 256 > framing.MAX_MESSAGE_BYTES - len(framing.pack_reply(1, reply))
    peer.answer(1, reply)

    assert reply == await future


async def test_a_reply_outlives_the_buffer(peer):
    """A reply is a copy: the next message does not change it."""
    first = peer.channel.exchange(OpenSession())
    peer.answer(1, Decrypted(plaintext=b"A" * 64))
    one = await first
    second = peer.channel.exchange(OpenSession())
    peer.answer(2, Decrypted(plaintext=b"B" * 64))
    two = await second

    assert (b"A" * 64, b"B" * 64) == (one.plaintext, two.plaintext)


async def test_abandoned_by_timeout(peer):
    """The reply to an abandoned request is read before the next request is sent."""
    first = peer.channel.exchange(OpenSession())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await asyncio.shield(first)
    assert peer.channel.busy_since is not None
    peer.answer(1, Decrypted(plaintext=b"the first one's"))
    await peer.channel.idle()
    second = peer.channel.exchange(OpenSession())
    peer.answer(2, Decrypted(plaintext=b"the second one's"))

    assert b"the second one's" == (await second).plaintext
    assert [] == peer.lost


async def test_abandoned_by_cancelling_the_future(peer):
    """Cancelling the future itself neither frees the channel nor breaks it."""
    first = peer.channel.exchange(OpenSession())
    first.cancel()
    with pytest.raises(AssertionError):
        peer.channel.exchange(OpenSession())
    peer.answer(1, Decrypted(plaintext=b"the first one's"))
    await peer.channel.idle()
    second = peer.channel.exchange(OpenSession())
    peer.answer(2, Done())

    assert Done() == await second
    assert [] == peer.lost


async def test_send_to_a_gone_worker(peer):
    """A request to a worker that has just gone fails at once with `WorkerLostError`."""
    peer.socket.close()
    future = peer.channel.exchange(OpenSession())

    assert "the worker receives no more" == await lost_with(peer, future)


async def test_unsendable_request(peer):
    """A request that cannot be encoded leaves the channel usable."""
    broken = FindKeys(label="\ud800")
    with pytest.raises(UnicodeEncodeError):
        peer.channel.exchange(broken)
    assert peer.channel.busy_since is None
    future = peer.channel.exchange(OpenSession())
    peer.answer(1, Done())

    assert Done() == await future


async def test_close(peer):
    """Closing fails the request under way, reports no loss, and can be repeated."""
    future = peer.channel.exchange(OpenSession())
    peer.channel.close()
    peer.channel.close()

    with pytest.raises(WorkerLostError):
        await future
    assert [] == peer.lost
    peer.take()
    assert b"" == peer.socket.recv(10)
