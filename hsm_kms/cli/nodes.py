"""Provide `hsm-kms nodes`: compare the keys that the nodes of a cluster use.

1. The nodes agree if each can be read, is ok, and announces the same key.
2. The newest of the announced keys, by activation time, is the one to agree on: a node
   that announces another is behind, and either holds the newest or has not seen it.
"""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from hsm_kms import interrupts
from hsm_kms.cli.columns import aligned
from hsm_kms.cli.options import KEY_ID_TYPE, output_option
from hsm_kms.cli.report import Report
from hsm_kms.cli.waiting import until_well, wait_option
from hsm_kms.clock import when
from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.cli.report import Finding
    from hsm_kms.http.nodes import NodeState

DEFAULT_PORT: Final = 9462
SECONDS: Final = 3.0
_AT_ONCE: Final = 32
_PORT: Final = re.compile("[1-9][0-9]{0,4}")
_SHORT: Final = len("sha256:") + 12
_COLUMNS: Final = ("NODE", "STATE", "VERSION", "CURRENT KEY", "PENDING KEYS")
_MISSING: Final = "it has not seen this key: see whether the token is replicated to it"


class Source(NamedTuple):
    """Say where the state of a node is read.

    Args:
        name: As the command line has it.
        file: A file with the output of `hsm-kms status -o json`; None for a port.
        host: Name or address of the node.
        port: Port of its metrics.
    """

    name: str
    file: Path | None = None
    host: str = ""
    port: int = DEFAULT_PORT

    def read(self) -> NodeState:
        """Read the state of the node.

        Raises:
            HsmKmsError: It cannot be read.
        """
        from hsm_kms.http.nodes import from_status, scrape  # noqa: PLC0415

        if self.file is None:
            return scrape(self.host, self.port, SECONDS)
        try:
            text = self.file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is not text"
            raise HsmKmsError(f"the file cannot be read: {cause}") from None
        return from_status(text)


class SourceType(click.ParamType[Source]):
    """Parse the name of a node."""

    name = "node"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Source:
        """Return the source that HOST, HOST:PORT, [ADDRESS]:PORT or FILE names."""
        if isinstance(value, Source):
            return value
        if "/" in value or value.endswith(".json"):
            return Source(value, file=Path(value))
        host, colon, port = value.rpartition(":")
        if not colon or value.endswith("]"):
            host, port = value, str(DEFAULT_PORT)
        if not (_is_host(host) and _PORT.fullmatch(port) and int(port) < 1 << 16):
            self.fail(f"{value!r} is not HOST, HOST:PORT or FILE", param, ctx)
        return Source(f"{host}:{port}", host=host.strip("[]"), port=int(port))


def _is_host(text: str) -> bool:
    """Return True if the resolver and HTTP take this as the name of a host."""
    try:
        return bool(text.encode("idna")) and text.isprintable() and " " not in text
    except UnicodeError:  # a part between dots is empty, or is too long
        return False


@click.command()
@click.argument(
    "sources", metavar="NODE...", nargs=-1, required=True, type=SourceType()
)
@click.option(
    "--key",
    "key_id",
    metavar="KEY_ID",
    type=KEY_ID_TYPE,
    help="Also fail unless each node holds this key, if only as a pending one.",
)
@wait_option
@output_option
def nodes(
    sources: tuple[Source, ...], *, key_id: str | None, seconds: float, output: str
) -> None:
    """Compare the keys that the nodes of a cluster use.

    NODE is HOST or HOST:PORT, whose metrics are read (port 9462 unless given), or a
    FILE with the output of `hsm-kms status -o json` on that node. Exits with 1 while
    the nodes differ, or one of them cannot be read or is not ok. After a rotation,
    `--wait` returns when every node encrypts with the new key.
    """
    ended = until_well(lambda: Comparison.of(sources, key_id), seconds)
    if output == "json":
        click.echo(json.dumps(ended.shown()))
    else:
        for line in aligned([_COLUMNS, *map(_row, ended.readable().items())]):
            click.echo(line)
        ended.report.show()
    sys.exit(1 if ended.failures else 0)


class Comparison(NamedTuple):
    """Hold what the nodes reported at one time, and what is wrong.

    Args:
        states: State by name of the node; an error if it could not be read.
        report: The findings.
    """

    states: dict[str, NodeState | HsmKmsError]
    report: Report

    @classmethod
    def of(cls, sources: Sequence[Source], key_id: str | None) -> Comparison:
        """Read all nodes at once, and compare them."""
        with interrupts.exiting():
            from hsm_kms.log import key_id_hash  # noqa: PLC0415

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            states = dict(
                zip(
                    (each.name for each in sources),
                    pool.map(_read, sources),
                    strict=True,
                )
            )
        ended = cls(states, Report())
        ended._judge(key_id_hash(key_id) if key_id else None)
        return ended

    @property
    def failures(self) -> list[Finding]:
        """Return what is wrong."""
        return self.report.failures

    def readable(self) -> dict[str, NodeState]:
        """Return the state of each node that could be read."""
        return {
            name: state
            for name, state in self.states.items()
            if not isinstance(state, HsmKmsError)
        }

    def _judge(self, wanted: str | None) -> None:
        for name, state in self.states.items():
            if isinstance(state, HsmKmsError):
                self.report.fail("nodes", name, state)
            elif state.state != "ok":
                hint = "run `hsm-kms status` on that node"
                error = HsmKmsError(f"the state is {state.state}", hint=hint)
                self.report.fail("nodes", name, error)
            elif wanted is not None and wanted not in state.keys:
                error = HsmKmsError(f"the node does not hold {_short(wanted)}")
                self.report.fail("nodes", name, error)
        self._find_behind()
        if not self.failures:
            self.report.ok("nodes", f"all {len(self.states)} nodes agree")

    def _find_behind(self) -> None:
        readable = self.readable()
        announced = {each.current for each in readable.values() if each.current}
        if len(announced) < 2:  # noqa: PLR2004 - one is agreement
            return
        since: dict[str, float] = {}
        for state in readable.values():
            since |= state.activations
        newest = max(announced, key=lambda key: (since.get(key, 0.0), key))
        for name, state in readable.items():
            if state.current and state.current != newest:
                held = state.keys.get(newest)
                why = f"{_short(newest)} is {held or 'unseen'} here, current elsewhere"
                hint = "wait for its API server to ask for Status" if held else _MISSING
                error = HsmKmsError(f"the node is behind: {why}", hint=hint)
                self.report.fail("nodes", name, error)

    def shown(self) -> dict[str, Any]:
        """Return the content of `-o json`."""
        return {
            "agree": not self.failures,
            "nodes": [
                {"node": name, "error": str(state)}
                if isinstance(state, HsmKmsError)
                else {
                    "node": name,
                    "error": None,
                    "state": state.state,
                    "version": state.version,
                    "key_id_hash": state.current,
                    "keys": dict(state.keys),
                }
                for name, state in self.states.items()
            ],
            "failures": [each.text for each in self.failures],
        }


def _read(source: Source) -> NodeState | HsmKmsError:
    try:
        return source.read()
    except HsmKmsError as error:
        return error


def _row(item: tuple[str, NodeState]) -> tuple[str, ...]:
    name, state = item
    pending = [key for key, what in state.keys.items() if what == "pending"]
    comes = (_comes(key, state.activations.get(key)) for key in pending)
    current = _short(state.current) if state.current else "-"
    return name, state.state, state.version, current, ", ".join(comes) or "-"


def _comes(key: str, at: float | None) -> str:
    return f"{_short(key)} from {when(at)}" if at else _short(key)


def _short(key: str) -> str:
    return key[:_SHORT]
