"""Make the requests: with h2load if all may be equal, otherwise with bench/client.

h2load needs the least CPU, but ignores the gRPC status and repeats one request. The
client is written in Go with the API server's own gRPC library; it is built once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from hsm_kms.api.rpc import kms_v1beta1_pb2
from tests.harness.kept import kept

CLIENT = Path(__file__).parent / "client"
BUILD_TIMEOUT = 10 * 60.0  # seconds


class Report(NamedTuple):
    """Hold what the client reports.

    Args:
        requests: Number of requests.
        seconds: Time that all requests took together.
        codes: Number of requests by gRPC status code; "WRONG" is another DEK than the
            one that was wrapped.
        p50_ms: Median of the times, in milliseconds.
        p99_ms: 99th percentile of the times, in milliseconds.
        max_ms: Longest time, in milliseconds.
    """

    requests: int
    seconds: float
    codes: dict[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def rate(self) -> float:
        """Return the requests per second."""
        return self.requests / self.seconds

    @property
    def void(self) -> str:
        """Return the note behind a figure: "" if every answer was OK."""
        return "" if set(self.codes) == {"OK"} else f" (void: {self.codes})"


def require_tools() -> None:
    """Exit with a message if a tool is missing."""
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is missing: apt-get install nghttp2-client")


def frame(directory: Path) -> Path:
    """Write a gRPC message with one v1 EncryptRequest."""
    request = kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=os.urandom(32))
    body = request.SerializeToString()
    path = directory / "frame"
    path.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    return path


def h2load(socket: Path, data: Path, *, streams: int, seconds: float) -> float:
    """Return the v1 Encrypts per second over one connection."""
    result = subprocess.run(
        [
            *("h2load", "--duration", str(int(seconds)), "--warm-up-time", "1"),
            *("--clients", "1", "--max-concurrent-streams", str(streams)),
            *("--base-uri", f"unix:{socket}", "--data", str(data)),
            *("--header", "content-type: application/grpc", "--header", "te: trailers"),
            "http://localhost/v1beta1.KeyManagementService/Encrypt",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", result.stdout)
    if found is None:
        raise SystemExit(f"h2load said:\n{result.stdout}")
    return float(found[1])


def encrypt(socket: Path, records: Path, *, count: int, streams: int) -> Report:
    """Make records of `count` DEKs, and keep both in a file."""
    return _run(socket, records, f"-encrypt={count}", f"-streams={streams}")


def decrypt(
    socket: Path, records: Path, *, streams: int, seconds: float | None = None
) -> Report:
    """Decrypt every record of a file once, or repeatedly for a number of seconds."""
    duration = [] if seconds is None else [f"-for={seconds:g}s"]
    return _run(socket, records, f"-streams={streams}", *duration)


def _run(socket: Path, records: Path, *arguments: str) -> Report:
    command = [str(_client()), f"-socket={socket}", f"-records={records}", *arguments]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Report(**json.loads(result.stdout))


def _client() -> Path:
    digest = hashlib.sha256()
    for file in sorted(CLIENT.iterdir()):
        digest.update(file.read_bytes())
    path = kept("bench") / digest.hexdigest()[:16] / "client"
    if not path.exists():
        if shutil.which("go") is None:
            raise SystemExit("Go is missing: bench/client cannot be built")
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-o", str(path), "."]
        subprocess.run(command, cwd=CLIENT, check=True, timeout=BUILD_TIMEOUT)
    return path
