"""Compare hsm-kms with plugins of others: `python -m bench.peers --help`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import load
from bench.common import listening, serving
from bench.report import LIKE_FOR_LIKE, PEERS, peers_table
from bench.results import OUT, PEERS_FILE, Results
from tests.harness.softhsm import PIN, TOKEN_LABEL, SoftHsm, softhsm_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.results import Case

OURS = "hsm-kms"
MOCK = "reference of kubernetes/kms"
MOCK_KEY = "kms-test"  # what the reference looks for
STREAMS = (1, 16, 64)
RECORDS = 1000
METHODS = ("Encrypt", "Decrypt")


class Peer(NamedTuple):
    """Name one plugin.

    Args:
        name: In the table.
        socket: Where it serves KMS v2.
        records: File of records that it made.
    """

    name: str
    socket: Path
    records: Path


@contextmanager
def mock(directory: Path, program: Path) -> Iterator[Path]:
    """Run the reference on a SoftHSM2 token of its own, and yield its socket.

    Args:
        directory: Directory of the token.
        program: What `go build` made.
    """
    hsm = SoftHsm(directory / "mock")
    hsm.init_token()
    hsm.pkcs11_tool("--keygen", "--key-type", "aes:32", "--label", MOCK_KEY)
    config = hsm.directory / "config.json"
    config.touch(mode=0o600)
    settings = {"path": softhsm_module(), "tokenLabel": TOKEN_LABEL, "pin": PIN}
    config.write_text(json.dumps(settings))
    socket = hsm.directory / "kms.sock"
    options = (f"-listen-addr=unix://{socket}", f"-config-file-path={config}")
    with listening([str(program), *options], socket, {**os.environ, **hsm.env}):
        yield socket


def measure(peers: list[Peer], rounds: int, seconds: int) -> Results:
    """Make the same load to all, in turns.

    Args:
        peers: The plugins.
        rounds: How often each case is measured.
        seconds: How long.
    """
    results = Results(machine={}, plan="peers", command="")
    for _ in range(rounds):
        for streams in STREAMS:
            for method in METHODS:
                for peer in peers:
                    report = _one(peer, method, streams, seconds)
                    case: Case = {
                        "method": method,
                        "streams": streams,
                        "name": peer.name,
                    }
                    results.add(PEERS, case, report.metrics, report.void)
    return results


def _one(peer: Peer, method: str, streams: int, seconds: int) -> load.Report:
    if method == "Encrypt":
        return load.encrypt_for(peer.socket, streams=streams, seconds=seconds, api="v2")
    return load.decrypt(
        peer.socket, peer.records, streams=streams, seconds=seconds, api="v2"
    )


def main() -> None:
    """Compare the plugins that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--mock", type=Path, help=f"start the {MOCK}, this program")
    parser.add_argument(
        "--socket", action="append", default=[], metavar="NAME=PATH", help="a plugin"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory ({OUT})")
    parser.add_argument("--quick", action="store_true", help="measure less: 1 minute")
    given = parser.parse_args()
    if any("=" not in each for each in given.socket):
        parser.error("--socket must be NAME=PATH")
    sockets = {name: Path(path) for name, _, path in map(_split, given.socket)}
    rounds, seconds = (2, 1) if given.quick else (5, 3)
    with (
        tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as name,
        ExitStack() as stack,
    ):
        directory = Path(name)
        for ours, verify in ((OURS, True), (LIKE_FOR_LIKE, False)):
            plugin, _ = stack.enter_context(
                serving(
                    directory / f"ours-{verify}",
                    local_keys={"verify_wraps": verify},
                    token={"module": softhsm_module()},  # the shim costs a little
                )
            )
            sockets[ours] = plugin.socket
        if given.mock:
            sockets[MOCK] = stack.enter_context(mock(directory, given.mock))
        peers = [_prepared(name, path, directory) for name, path in sockets.items()]
        results = measure(peers, rounds, seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    results.write(given.out, PEERS_FILE)
    print(peers_table(results), end="")


def _split(given: str) -> tuple[str, str, str]:
    return given.partition("=")


def _prepared(name: str, socket: Path, directory: Path) -> Peer:
    """Have a plugin make the records that it decrypts."""
    records = directory / f"{name.replace('/', '-')}.records"
    report = load.encrypt(socket, records, count=RECORDS, streams=8, api="v2")
    if report.void:
        raise SystemExit(f"{name} on {socket} cannot be measured: {report.void}")
    return Peer(name, socket, records)


main()
