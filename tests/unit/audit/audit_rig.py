"""Records for tests, and files that hold them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from hsm_kms.audit.events import Event, Header, Pin
from hsm_kms.config.schema import Audit
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

HEADER = Header.__struct_fields__


def event(number: int = 0) -> Pin:
    """Return a record that is told from others by its number."""
    return Pin(result="accepted", pin_file=None, worker=number, function=None, ckr=None)


def to(path: Path, on_error: str = "continue") -> Audit:
    """Return the section `audit` with this file."""
    return Audit.model_validate({"file": str(path), "on_error": on_error})


def audit_path(directory: Path) -> Path:
    """Make a directory for an audit file; return the path of the file."""
    own = directory / "audit"
    own.mkdir(mode=0o700)
    return own / "audit.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, each of which must be as the schema says.

    A record that is being written is waited for.
    """

    def whole() -> list[str] | None:
        text = path.read_text()
        return [text] if text[-1:] in {"", "\n"} else None

    (text,) = wait_for(whole)
    return [parsed(line) for line in text.splitlines()]


def of(path: Path, event: str) -> list[dict[str, Any]]:
    """Return the records of one event."""
    return [each for each in lines(path) if each["event"] == event]


def parsed(line: str) -> dict[str, Any]:
    """Return a record that is as the schema says, with no field more or less."""
    record: dict[str, Any] = json.loads(line)
    rest = {name: value for name, value in record.items() if name not in HEADER}
    msgspec.convert({name: record[name] for name in HEADER}, Header)
    known = msgspec.convert(rest, Event)
    assert list(record) == [*HEADER, "event", *known.__struct_fields__]
    return record


def numbers(path: Path) -> list[int]:
    """Return the numbers of the records in a file that `event` made."""
    return [each["worker"] for each in of(path, "pin")]
