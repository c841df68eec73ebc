"""Make the requests: with h2load if all may be equal, otherwise with bench/client.

h2load needs the least CPU, but ignores the gRPC status and repeats one request. The
client is written in Go with the API server's own gRPC library; it is built once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hsm_kms.api.rpc import kms_v1beta1_pb2
from tests.harness.kept import kept

CLIENT = Path(__file__).parent / "client"
BUILD_TIMEOUT = 10 * 60.0  # seconds
WARM_UP = 0.5  # seconds, before anything is measured; bench/client has the same


class Report(NamedTuple):
    """Hold what came of many requests.

    Args:
        requests: Number of requests.
        seconds: Time that all requests took together.
        codes: Number of requests by gRPC status code; "WRONG" is another DEK than the
            one that was wrapped. h2load does not know the codes.
        p50_ms: Median of the times, in milliseconds.
        p90_ms: 90th percentile of the times, in milliseconds.
        p99_ms: 99th percentile of the times, in milliseconds.
        p999_ms: 99.9th percentile of the times, in milliseconds.
        max_ms: Longest time, in milliseconds.
    """

    requests: int
    seconds: float
    codes: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @property
    def rate(self) -> float:
        """Return the requests per second."""
        return self.requests / self.seconds

    @property
    def void(self) -> str:
        """Return why the figures do not count: "" if every answer was OK."""
        return "" if set(self.codes) <= {"OK"} else f"not all OK: {self.codes}"

    @property
    def metrics(self) -> dict[str, float]:
        """Return the rate and the times, as they are kept."""
        times = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
        return {"rate": self.rate} | {name: getattr(self, name) for name in times}


def require_tools() -> None:
    """Exit with a message if a tool is missing."""
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is missing: apt-get install nghttp2-client")
    build_client()


def frame(directory: Path) -> Path:
    """Write a gRPC message with one v1 EncryptRequest."""
    request = kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=os.urandom(32))
    body = request.SerializeToString()
    path = directory / "frame"
    path.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    return path


def h2load(
    socket: Path, data: Path, *, streams: int, seconds: float, clients: int = 1
) -> Report:
    """Make v1 Encrypts for some time.

    What h2load counts begins after its warm-up; the time that it prints does not.

    Args:
        socket: The plugin's socket.
        data: What `frame` wrote.
        streams: Requests at once, on all connections together.
        seconds: How long; h2load takes whole seconds.
        clients: Number of connections.
    """
    taken = max(1, round(seconds))
    with tempfile.NamedTemporaryFile("r", suffix=".tsv") as log:
        result = subprocess.run(
            [
                *("h2load", "--duration", str(taken)),
                *("--warm-up-time", f"{WARM_UP * 1000:.0f}ms"),
                *("--clients", str(clients)),
                *("--max-concurrent-streams", str(max(1, streams // clients))),
                *("--base-uri", f"unix:{socket}", "--data", str(data)),
                *("--header", "content-type: application/grpc"),
                *("--header", "te: trailers", "--log-file", log.name),
                "http://localhost/v1beta1.KeyManagementService/Encrypt",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        times = sorted(int(line.rsplit("\t", 1)[1]) / 1000 for line in log)
    found = re.search(r"^requests: (\d+) total", result.stdout, re.MULTILINE)
    if found is None or not times:
        raise SystemExit(f"h2load said:\n{result.stdout}")

    def at(share: float) -> float:
        return times[int(share * (len(times) - 1))]

    return Report(
        requests=int(found[1]),
        seconds=taken,
        codes={},
        p50_ms=at(0.5),
        p90_ms=at(0.9),
        p99_ms=at(0.99),
        p999_ms=at(0.999),
        max_ms=at(1),
    )


def encrypt(
    socket: Path, records: Path, *, count: int, streams: int, api: str = "v1"
) -> Report:
    """Make records of `count` DEKs, and keep both in a file."""
    more = ("-encrypt", f"-count={count}", f"-records={records}")
    return _run(socket, api, streams, *more)


def encrypt_for(
    socket: Path, *, streams: int, seconds: float, api: str = "v1"
) -> Report:
    """Encrypt DEKs for a number of seconds, and keep nothing."""
    return _run(socket, api, streams, "-encrypt", f"-for={seconds:g}s")


def decrypt(
    socket: Path,
    records: Path,
    *,
    streams: int,
    seconds: float | None = None,
    api: str = "v1",
) -> Report:
    """Decrypt every record of a file once, or repeatedly for a number of seconds."""
    duration = [] if seconds is None else [f"-for={seconds:g}s"]
    return _run(socket, api, streams, f"-records={records}", *duration)


def read_records(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file; `dek` and `cipher` are bytes."""
    lines = map(json.loads, file.read_text().splitlines())
    return [
        line | {name: base64.b64decode(line[name]) for name in ("dek", "cipher")}
        for line in lines
    ]


def with_dek(records: Path, dek: bytes, mine: Path) -> Path:
    """Write the same records with another DEK, which a handler answers to all."""
    changed = {"dek": base64.b64encode(dek).decode()}
    lines = map(json.loads, records.read_text().splitlines())
    mine.write_text("".join(json.dumps(line | changed) + "\n" for line in lines))
    return mine


def _run(socket: Path, api: str, streams: int, *arguments: str) -> Report:
    command = [
        *(str(build_client()), f"-socket={socket}", f"-api={api}"),
        *(f"-streams={streams}", *arguments),
    ]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Report(**json.loads(result.stdout))


def build_client() -> Path:
    """Return the client, which is built if this version was not."""
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
