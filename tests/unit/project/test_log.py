"""Test logging: one renderer for all events, and no secret values."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging

import pytest
import structlog

from hsm_kms import log
from tests.harness.log_capture import captured

SECRET = "sesame-1234"  # noqa: S105


def fail(depth: int = 0) -> None:
    """Raise an error whose text and locals contain the secret."""
    pin = SECRET
    if depth:
        fail(depth - 1)
    try:
        {}[pin]
    except KeyError as e:
        raise ValueError(f"bad PIN {pin}") from e


def test_our_events_are_json():
    """An event is one JSON object with time, level, logger and values."""
    with captured() as stream:
        structlog.get_logger("hsm_kms.test").info("started", sessions=8)
    (event,) = stream.events()

    assert event.pop("timestamp").endswith("Z")
    assert {
        "event": "started",
        "level": "info",
        "logger": "hsm_kms.test",
        "sessions": 8,
    } == event


def test_library_events_are_rendered_alike():
    """Events of a library look like those of hsm-kms."""
    with captured() as stream:
        logging.getLogger("grpc._server").warning("lost %s", "something")
    (event,) = stream.events()

    assert {"timestamp", "event", "level", "logger"} == set(event)
    assert ("lost something", "warning", "grpc._server") == (
        event["event"],
        event["level"],
        event["logger"],
    )


def test_text_form():
    """The text format prints lines without colour codes."""
    with captured(form="text") as stream:
        structlog.get_logger("hsm_kms.test").info("started", sessions=8)
    line = stream.getvalue()

    assert "started" in line
    assert "sessions=8" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level(level, written):
    """Events below the level are not written, whoever logs them."""
    with captured(level) as stream:
        for each in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger("hsm_kms.test"), each)("ours")
            getattr(logging.getLogger("elsewhere"), each)("theirs")

    assert [each for name in written for each in (name, name)] == [
        event["level"] for event in stream.events()
    ]


def test_libraries_do_not_chatter():
    """At level debug, grpc and asyncio still log from level info on only."""
    with captured("debug") as stream:
        for name in ("asyncio", "grpc", "grpc._cython.cygrpc"):
            logging.getLogger(name).debug("loop loaded")

    assert [] == stream.events()


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("ours", [True, False], ids=["structlog", "logging"])
def test_exceptions_without_values(form, ours):
    """An exception is logged by type and frames, without its text and locals."""
    with captured(form=form) as stream:
        logger = structlog.get_logger("hsm_kms.test") if ours else logging.getLogger()
        try:
            fail(depth=2)
        except ValueError:
            logger.exception("it broke")
    text = stream.getvalue()

    assert SECRET not in text
    assert "it broke" in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert "in fail" in text


def test_exception_given_by_name():
    """An exception that is passed as a value is logged in the same way."""
    with captured() as stream:
        structlog.get_logger().error("it broke", exc_info=ValueError(SECRET))
    (event,) = stream.events()

    assert ["ValueError"] == event["trace"]


def test_exceptions_in_a_ring():
    """A cycle of exceptions that cause each other is logged once."""
    first, second = ValueError("a"), TypeError("b")
    first.__cause__, second.__cause__ = second, first

    assert ["ValueError", "TypeError"] == log.describe(first)


async def test_forgotten_task():
    """A message of asyncio about an unawaited task shows no text of its exception."""

    async def forgotten() -> None:
        raise ValueError(SECRET)

    with captured() as stream:
        task = asyncio.ensure_future(forgotten())
        await asyncio.wait([task])
        del task
        gc.collect()
    (event,) = stream.events()

    assert "Task exception was never retrieved" == event["event"]
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize(
    "value", [SECRET.encode(), bytearray(SECRET.encode()), memoryview(SECRET.encode())]
)
def test_bytes_are_not_written(value):
    """Byte strings are logged by their size."""
    with captured() as stream:
        structlog.get_logger().info("odd", value=value)
    (event,) = stream.events()

    assert f"<{len(SECRET)} bytes>" == event["value"]


def test_key_id_hash():
    """A key_id is hashed as kube-apiserver does in the labels of its metrics."""
    assert f"sha256:{hashlib.sha256(b'abc').hexdigest()}" == log.key_id_hash("abc")
    assert (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        == log.key_id_hash("abc")
    )
