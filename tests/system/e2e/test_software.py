"""2,000 Secrets by KMS v1 and a slow token: what a restart of the API server takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from hsm_kms.wrapping.record import Kind, Record
from tests.harness.command_line import HSM_KMS
from tests.harness.shim.driver import Shim
from tests.system.e2e.plugin import softhsm_module
from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import encrypted_dek_v1
from tests.system.e2e.world import NAMESPACE, World, running_world, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SECRETS = 2_000
WRITERS = 8  # at the same time
LATENCY = 5  # milliseconds, at each of these:
HOT = ("C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
KINDS = {"token": Kind.DEK_BY_TOKEN, "software": Kind.DEK_BY_LOCAL_KEK}
FEW = 20  # canaries of two workers among them
READYZ = "/readyz/kms-provider-0"
NOTICED = 90.0  # seconds


@dataclass(frozen=True)
class Restart:
    """Plugin and API server started over all the Secrets, and what that took.

    Args:
        wrapping: Of KMS v1.
        world: Both, still running.
        seconds: From the API server's start until it is ready and lists them all.
        asked: Requests of the plugin to the token for it, by operation.
        calls: C calls since the plugin's start, canaries included.
    """

    wrapping: str
    world: World
    seconds: float
    asked: Counter[str]
    calls: Counter[str]

    @property
    def line(self) -> str:
        """For the table."""
        figures = (self.asked["decrypt"], self.calls["C_Decrypt"])
        return f"{self.wrapping:<10}{self.seconds:>8.1f}" + "".join(
            f"{figure:>16,}" for figure in figures
        )


def create_all(world: World) -> None:
    """Create the Secrets, as fast as the API server takes them."""

    def create(first: int) -> Counter[int]:
        wanted = range(first, SECRETS, WRITERS)
        bodies = (secret(f"s{number}", f"text of s{number}") for number in wanted)
        answers = world.api.requests("POST", NAMESPACE, bodies)
        return Counter(status for status, _ in answers)

    with ThreadPoolExecutor(WRITERS) as writers:
        statuses = sum(writers.map(create, range(WRITERS)), Counter())
    assert {201: SECRETS} == statuses


def kinds(world: World) -> Counter[Kind]:
    """Count the stored Secrets by kind of record."""
    values = world.etcd.secrets().values()
    return Counter(Record.decode(encrypted_dek_v1(v)).header.kind for v in values)


def listed(world: World) -> int:
    """Return how many Secrets the API server lists, 0 if it fails."""
    status, body = world.api.get(NAMESPACE)
    return len(json.loads(body)["items"]) if status == 200 else 0


@contextmanager
def restarted(wrapping: str, binaries: Binaries, folder: Path) -> Iterator[Restart]:
    """Store the Secrets; start plugin and API server anew over a slow token."""
    with running_world(binaries, folder) as world:
        plugin, api = world.plugin, world.api
        shim = Shim(folder, str(softhsm_module()))
        plugin.configure(
            apis={
                "v1": {"enabled": True, "wrapping": wrapping},
                "v2": {"enabled": False},
            },
            token={
                "module": str(shim.module),
                "env": {"SOFTHSM2_CONF": str(plugin.token.conf), **shim.env},
            },
            # Fewer canaries among the calls that are counted.
            keys={"discover": "5m"},
            health={"interval": "5m"},
        )
        plugin.restart()
        wait_for(
            f"wrapping by {wrapping}",
            lambda: (
                Record.decode(plugin.encrypt_v1(b"?")).header.kind is KINDS[wrapping]
            ),
            timeout=NOTICED,
        )
        api.start(world.encryption("v1"))
        create_all(world)
        assert {KINDS[wrapping]: SECRETS} == kinds(world)
        api.stop()
        plugin.stop()

        before = shim.counts()
        shim.set(*(f"{function} sleep={LATENCY}" for function in HOT))
        plugin.start()
        began = time.monotonic()
        api.start(world.encryption("v1"))
        wait_for("list of all", lambda: listed(world) == SECRETS, timeout=NOTICED)
        seconds = time.monotonic() - began
        after = shim.counts()
        shim.clear()
        yield Restart(
            wrapping,
            world,
            seconds,
            asked=Counter(plugin.server()["token"]["calls"]),
            calls=Counter({f: after[f].calls - before[f].calls for f in HOT}),
        )


@pytest.fixture(scope="module")
def software(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Restart]:
    """With local KEKs."""
    with restarted("software", binaries, new_folder()) as restart:
        yield restart


@pytest.fixture(scope="module")
def token(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Restart]:
    """With a call to the token for each Secret."""
    with restarted("token", binaries, new_folder()) as restart:
        yield restart


def test_a_restart_asks_the_token_once_and_not_for_each_secret(software, token, capsys):
    """With `software` a restart costs a few token calls, with `token` 2,000."""
    with capsys.disabled():
        sys.stdout.write(
            f"\n{SECRETS:,} Secrets by KMS v1, {LATENCY} ms at each C call; from the"
            " API server's start until it is ready and lists them\n"
            f"{'WRAPPING':<10}{'SECONDS':>8}{'TOKEN DECRYPTS':>16}{'C_DECRYPT':>16}\n"
            f"{software.line}\n{token.line}\n"
        )

    assert software.seconds < token.seconds
    assert 2 * SECRETS * LATENCY / 1000 < token.seconds
    assert 2 <= software.asked["decrypt"] <= 4  # a birth's read-back, an opening
    assert software.calls["C_Decrypt"] <= FEW
    assert SECRETS <= token.asked["decrypt"]


def test_without_the_token_software_serves_a_restart(software):
    """Without the token a restarted API server reads and writes with `software`."""
    world = software.world
    with world.plugin.outage():
        wait_for(
            "degraded",
            lambda: world.plugin.server()["state"] == "degraded",
            timeout=NOTICED,
        )

        world.api.restart()

        assert (200, b"ok") == world.api.get(READYZ)
        assert SECRETS <= listed(world)
        assert "text of s1234" == world.read("s1234")
        world.create("written-meanwhile", "text")
        assert "text" == world.read("written-meanwhile")
        assert "degraded" == world.plugin.server()["state"]
    wait_for("ok", lambda: world.plugin.server()["state"] == "ok", timeout=NOTICED)
    assert {Kind.DEK_BY_LOCAL_KEK} == set(kinds(world))


def test_without_the_token_token_says_why_not(token):
    """With `token` /readyz, reads and `hsm-kms status` say what is wrong."""
    world = token.world
    path = f"{NAMESPACE}/s7"
    with world.plugin.outage():
        wait_for(
            "failed",
            lambda: world.plugin.server()["state"] == "failed",
            timeout=NOTICED,
        )
        sentence = world.plugin.complaint("v1")

        world.api.restart(ready=False)
        check, read = wait_for(
            "answers", lambda: asked(world, READYZ, path), timeout=NOTICED
        )
        status = subprocess.run(
            [*HSM_KMS, "status", "--config", world.plugin.config_file],
            check=False,
            capture_output=True,
            text=True,
            timeout=NOTICED,
        )

        assert "the token is not ready: see hsm-kms check" == sentence
        assert (500, True) == (check[0], sentence in check[1].decode())
        assert (500, True) == (read[0], sentence in read[1].decode())
        assert 0 == listed(world)
        assert 1 == status.returncode
        assert status.stdout.startswith("healthz: the ")
        assert "run hsm-kms check on the node\nkey_id: " in status.stdout
        assert "\nstate: failed for " in status.stdout
    wait_for("a Secret", lambda: world.api.get(path)[0] == 200, timeout=NOTICED)


def asked(world: World, *paths: str) -> list[tuple[int, bytes]]:
    """Return the answers of the API server to these GETs."""
    return [world.api.get(path) for path in paths]
