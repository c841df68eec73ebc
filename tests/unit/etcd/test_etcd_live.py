"""Test reading etcd over gRPC: pages, endpoints and errors."""

from __future__ import annotations

import socket

import grpc
import pytest

from hsm_kms.etcd.connection import Login
from hsm_kms.etcd.live import MAX_PAGE, PAGE_BYTES, Access, Etcd
from hsm_kms.etcd.source import EtcdError, Item, end_of
from tests.harness.etcd_server import EtcdServer, Knobs, made_objects, read

MIB = 1024**2
NOBODY = ("127.0.0.1:1", "127.0.0.1:2")  # endpoints where nobody listens
Code = grpc.StatusCode


def test_all_pages_are_of_one_revision():
    """Every object is read once and in order, at the revision of the first page."""
    held = made_objects(1000)
    outside = {b"/registrz/secrets/a": b"1", b"/other": b"2"}
    with EtcdServer(held | outside) as server, Etcd([server.endpoint]) as source:
        before = (source.total(), source.share())
        first, *others = source
        after = (source.total(), source.share())

    assert held == {item.key: item.value for item in [first, *others]}
    assert sorted(held) == [item.key for item in [first, *others]]
    assert ((None, None), (1000, 1.0)) == (before, after)
    assert [0, *[7] * (len(server.knobs.revisions) - 1)] == server.knobs.revisions
    assert MAX_PAGE == max(server.knobs.limits)


def test_nothing_held():
    """An empty etcd gives no object."""
    with EtcdServer({}) as server:
        assert [] == read(server)


@pytest.mark.parametrize("prefix", [b"", b"/registry/", b"/registry/secrets/n/00000"])
def test_prefixes(prefix):
    """Only keys below the prefix are requested; without a prefix, all keys are."""
    held = made_objects(20) | {b"a": b"", b"\xff\xff": b"", b"\0": b""}
    with (
        EtcdServer(held) as server,
        Etcd([server.endpoint], prefix=prefix) as source,
    ):
        found = {item.key for item in source}

    assert {key for key in held if key.startswith(prefix)} == found


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"/r/", b"/r0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")],
)
def test_the_end_of_a_prefix(prefix, end):
    """`end_of` returns the range_end of KV.Range for a prefix."""
    assert end == end_of(prefix)


def test_pages_follow_the_size_of_the_objects():
    """Pages have hundreds of small objects, but few large ones."""
    small = {f"/registry/a/{n:04}".encode(): b"x" for n in range(2000)}
    long = {f"/registry/b/{n:04}".encode(): bytes(MIB) for n in range(60)}
    again = {f"/registry/c/{n:04}".encode(): b"x" for n in range(2000)}
    held = small | long | again
    with EtcdServer(held) as server:
        assert len(held) == len(read(server))

    knobs = server.knobs
    assert MAX_PAGE in knobs.limits
    assert 2 in knobs.limits
    assert 1 >= sum(size > 32 * MIB for size in knobs.sizes)
    assert 20 * PAGE_BYTES > sorted(knobs.sizes)[-2]


def test_an_object_beyond_all_bounds():
    """An object that exceeds the limit of a response is an error."""
    held = {b"/registry/a": b"1", b"/registry/b": bytes(33 * MIB)}
    with EtcdServer(held) as server, pytest.raises(EtcdError, match="exceeds 32 MiB"):
        read(server)

    assert 1 == server.knobs.limits[-1]


def test_one_object():
    """`get` returns one object by its key, or None."""
    with EtcdServer(made_objects(3)) as server, Etcd([server.endpoint]) as source:
        found = source.get(b"/registry/secrets/n/000001")
        none = source.get(b"/registry/secrets/n/00000")

    assert Item(b"/registry/secrets/n/000001", bytes(10)) == found
    assert none is None


def test_values_are_not_in_a_repr():
    """The repr of an object does not show its value."""
    assert "hunter2" not in repr(Item(b"/registry/secrets/a/b", b"hunter2"))
    assert "hunter2" not in repr(Login("root", "hunter2"))


def test_the_next_endpoint_is_tried():
    """An endpoint that does not answer is skipped."""
    with (
        EtcdServer(made_objects(3)) as server,
        Etcd([NOBODY[0], f"http://{server.endpoint}"]) as source,
    ):
        assert 3 == len(list(source))
        assert f"http://{server.endpoint}" == source.name


def test_an_endpoint_lost_on_the_way():
    """If an endpoint is lost, another one continues at the same revision."""
    held = made_objects(1000)
    failing = Knobs(
        held, refuse=lambda n: (Code.UNAVAILABLE, "gone") if n > 3 else None
    )
    healthy = Knobs(held, revision=99)
    with (
        EtcdServer(failing) as one,
        EtcdServer(healthy) as two,
        Etcd([one.endpoint, two.endpoint]) as source,
    ):
        found = [item.key for item in source]

    assert sorted(held) == found
    assert {7} == set(two.knobs.revisions)


def test_an_endpoint_of_another_cluster():
    """Pages of two clusters are never combined."""
    held = made_objects(1000)
    failing = Knobs(
        held, refuse=lambda n: (Code.UNAVAILABLE, "gone") if n > 3 else None
    )
    with (
        EtcdServer(failing) as one,
        EtcdServer(Knobs(held, cluster=1)) as two,
        Etcd([one.endpoint, two.endpoint]) as source,
        pytest.raises(EtcdError, match="another etcd cluster"),
    ):
        list(source)


def test_nobody_listens():
    """If no endpoint answers, the error names each one with its reason."""
    one, two = NOBODY
    with pytest.raises(EtcdError) as caught, Etcd(NOBODY):
        pass

    assert f"{one}: connection refused; {two}: connection refused" in str(caught.value)
    hint = "see whether etcd runs there, or give its address as --endpoints"
    assert hint == caught.value.hint


def test_a_name_that_is_none():
    """A host name that cannot be resolved is reported as such."""
    with (
        pytest.raises(EtcdError, match=r"no\.such\.host\.invalid:2379: .*name"),
        Etcd(["no.such.host.invalid:2379"]),
    ):
        pass


def test_somebody_listens_and_says_nothing():
    """An endpoint that accepts a connection and never answers times out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with (
            pytest.raises(EtcdError, match=r"no answer within 0\.3 s"),
            Etcd([f"127.0.0.1:{port}"], Access(dial_timeout=0.3)),
        ):
            pass


@pytest.mark.parametrize(
    ("code", "details", "words", "hint"),
    [
        (
            *(Code.PERMISSION_DENIED, "etcdserver: permission denied"),
            "the etcd user cannot read all keys",
            "as root run `etcdctl role grant-permission ROLE --prefix read PREFIX`",
        ),
        (
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            "compacted the revision",
            (
                "run the command again; if it always takes too long, raise the API "
                "server's --etcd-compaction-interval, or have scan and verify read a "
                "snapshot"
            ),
        ),
        (
            *(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
            *("RESOURCE_EXHAUSTED: etcdserver: too many requests", None),
        ),
        (Code.UNIMPLEMENTED, "no\x1b[2J", "UNIMPLEMENTED: no\\x1b[2J", None),
    ],
)
def test_refusals(code, details, words, hint):
    """Errors of etcd are explained, in text that is safe for a terminal."""
    knobs = Knobs(
        made_objects(100), refuse=lambda n: (code, details) if n > 1 else None
    )
    with EtcdServer(knobs) as server, pytest.raises(EtcdError) as caught:
        read(server)

    assert words in str(caught.value)
    assert hint == caught.value.hint


def test_no_answer_any_more():
    """An endpoint that stops answering is named in the error."""
    knobs = Knobs(made_objects(100), refuse=lambda _: (Code.UNAVAILABLE, "no leader"))
    with EtcdServer(knobs) as server, pytest.raises(EtcdError) as caught:
        read(server)

    assert f"cannot connect to etcd: {server.endpoint}: UNAVAILABLE: no leader" in str(
        caught.value
    )


def test_a_server_that_turns_in_circles():
    """A server that reports more objects but returns none causes an error."""
    with (
        EtcdServer(Knobs(made_objects(100), stuck=True)) as server,
        pytest.raises(EtcdError, match="does not return them"),
    ):
        read(server)
