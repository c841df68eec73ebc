"""Start what the benches measure: a server on SoftHSM2 behind the shim, and others."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.harness.plugin import Plugin
from tests.harness.shim.driver import Shim
from tests.harness.softhsm import PIN, SoftHsm
from tests.harness.wait import wait_for, wait_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKERS = 4
SESSIONS_EACH = 4
SESSIONS = WORKERS * SESSIONS_EACH
ENDINGS = ("OK", "CANCELLED")  # h2load cancels the requests that run at its end
HOT = ("C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
DEK_BYTES = 32


def prepare(directory: Path, **sections: Any) -> tuple[Plugin, Shim]:
    """Return a running server on a token with a key, and the shim before the token.

    Args:
        directory: Directory of the token, the shim and the server.
        sections: Sections that change those of the configuration of every bench.
    """
    _, plugin, shim = behind_shim(directory)
    every = {
        "token": {"workers": WORKERS, "sessions_per_worker": SESSIONS_EACH},
        "keys": {"discover": "1h"},  # as canaries: none while we measure
        "health": {"interval": "1h"},
        "log": {"level": "info"},
    }
    for name, section in [*every.items(), *sections.items()]:
        plugin.merge(name, section)
    plugin.write_config()
    result = plugin.cli("keys", "generate")
    if result.returncode:
        raise SystemExit(result.stderr)
    start(plugin)
    return plugin, shim


def behind_shim(directory: Path, **sections: Any) -> tuple[SoftHsm, Plugin, Shim]:
    """Return a token without a key, a server for it, not started, and the shim between.

    Args:
        directory: Directory of the token, the shim and the server.
        sections: Sections that change those of the configuration.
    """
    hsm = SoftHsm(directory / "hsm")
    hsm.init_token()
    pin = directory / "pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    (directory / "shim").mkdir()
    shim = Shim(directory / "shim")
    plugin = Plugin(directory, hsm, pin, **sections)
    plugin.merge("token", {"module": str(shim.module), "env": hsm.env | shim.env})
    plugin.write_config()
    return hsm, plugin, shim


def start(plugin: Plugin) -> None:
    """Start the server, and wait until all of it is there."""
    plugin.start(spawn=True).wait_healthz("ok")
    wait_for(lambda: metrics(plugin)["hsm_kms_workers"] == plugin.workers)


def metrics(plugin: Plugin) -> dict[str, float]:
    """Return the server's own figures, by name and labels."""
    _, text = plugin.page("/metrics")
    lines = text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def answered(plugin: Plugin) -> tuple[float, float]:
    """Return the number of answers, and of those not OK, by the server's own count."""
    requests = "hsm_kms_requests_total{"
    fine = tuple(f'{requests}code="{code}"' for code in ENDINGS)
    counts = {
        name: count
        for name, count in metrics(plugin).items()
        if name.startswith(requests)
    }
    failed = (count for name, count in counts.items() if not name.startswith(fine))
    return sum(counts.values()), sum(failed)


def slow(shim: Shim, milliseconds: float) -> None:
    """Add a latency to each C call of the hot path."""
    if milliseconds:
        # The shim takes whole microseconds as a fraction of a millisecond.
        shim.set(*(f"{name} sleep={milliseconds:g}" for name in HOT))
    else:
        shim.clear()


@contextlib.contextmanager
def serving(directory: Path, **sections: Any) -> Iterator[tuple[Plugin, Shim]]:
    """Yield a server with a token of its own, in a new directory.

    Args:
        directory: The directory.
        sections: Sections that change those of the configuration of every bench.
    """
    directory.mkdir()
    plugin, shim = prepare(directory, **sections)
    try:
        yield plugin, shim
    finally:
        plugin.close()


def apis(v1: str) -> dict[str, object]:
    """Return the section that sets this wrapping mode for v1."""
    return {"v2": {"enabled": True}, "v1": {"enabled": True, "wrapping": v1}}


def pid_of(plugin: Plugin) -> int:
    """Return the process id of the server."""
    if plugin.process is None:
        raise SystemExit("the server does not run")
    return plugin.process.pid


def c_calls(shim: Shim) -> int:
    """Return the number of C calls so far."""
    return sum(each.calls for each in shim.counts().values())


def settle(plugin: Plugin, shim: Shim) -> None:
    """Wait until the server has what it needs and does not use the token."""
    plugin.v1_encrypt(b"d" * DEK_BYTES)
    wait_quiet(shim.counts, 0.5)


@contextlib.contextmanager
def listening(
    command: list[str], socket: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a program that listens, and kill it at the end.

    Args:
        command: What starts it.
        socket: What it makes when it is ready.
        env: Its environment, None for that of this process.
    """
    process = subprocess.Popen(command, env=env)
    try:
        wait_for(lambda: socket.exists() or process.poll() is not None)
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def empty_handler(directory: Path, size: int) -> Iterator[tuple[Path, int]]:
    """Yield socket and process id of a server that does nothing.

    Its responses are as large as ours.

    Args:
        directory: Directory of the socket.
        size: Size of a record in bytes.
    """
    socket = directory / "empty.sock"
    sizes = (str(size), str(DEK_BYTES))
    command = [sys.executable, "-m", "bench.empty", str(socket), *sizes]
    with listening(command, socket) as process:
        yield socket, process.pid
