"""Measure a start of kube-apiserver with more and more Secrets in a real etcd.

The programs are those of tests/system/e2e, which builds them once; while they are not
built, this suite is left out, and says so.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.common import HOT
from bench.plan import MANY_SECRETS
from tests.harness.command_line import HSM_KMS
from tests.harness.shim.driver import Shim
from tests.system.e2e import binaries as programs
from tests.system.e2e.plugin import softhsm_module
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import NAMESPACE, World, running_world, secret

if TYPE_CHECKING:
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Case, Results

SUITE = "secrets"
WRITERS = 8  # at once
LATENCY = 1  # milliseconds, at each C call of the hot path
LONG = 900.0  # seconds
CREATED = 201
OK = 200


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Describe how Secrets are encrypted.

    Args:
        name: In the table.
        version: KMS version; "" for no encryption.
        apis: The section of the plugin's configuration.
    """

    name: str
    version: str = ""
    apis: dict[str, Any] = field(default_factory=dict)


def _v1(wrapping: str) -> Mode:
    apis = {"v1": {"enabled": True, "wrapping": wrapping}, "v2": {"enabled": False}}
    return Mode(name=f"v1, wrapping: {wrapping}", version="v1", apis=apis)


MODES = (
    Mode(name="not encrypted"),
    Mode(name="v2", version="v2", apis={"v2": {"enabled": True}}),
    _v1("software"),
    _v1("token"),
)


def run(directory: Path, plan: Plan, results: Results) -> None:
    """Measure all modes with all numbers of Secrets."""
    if not plan.secrets:
        results.skipped[SUITE] = "left out of the quick form"
        return
    if lacking := programs.missing():
        results.skipped[SUITE] = f"left out: {lacking}"
        return
    for number, mode in enumerate(MODES):
        folder = directory / f"w{number}"
        folder.mkdir()
        with running_world(programs.cluster(), folder) as world:
            _one_mode(world, folder, mode, plan, results)


def _one_mode(
    world: World, folder: Path, mode: Mode, plan: Plan, results: Results
) -> None:
    shim = Shim(folder, str(softhsm_module()))
    token = {
        "module": str(shim.module),
        "env": {"SOFTHSM2_CONF": str(world.plugin.token.conf), **shim.env},
    }
    if mode.version:
        world.plugin.configure(apis=mode.apis, token=token)
        world.plugin.restart()
    shim.set(*(f"{name} sleep={LATENCY}" for name in HOT))
    encryption = world.encryption(mode.version) if mode.version else None
    world.api.start(encryption)
    made = 0
    for number in plan.secrets:
        began = time.monotonic()
        _create(world, made, number)
        writes = (number - made) / (time.monotonic() - began)
        made = number
        case: Case = {"mode": mode.name, "secrets": number}
        results.add(SUITE, case, {"writes_per_second": writes})
        for _ in range(plan.cold_rounds if number <= MANY_SECRETS else 1):
            results.add(SUITE, case, _restart(world, mode, shim, number))


def _create(world: World, first: int, last: int) -> None:
    """Create the Secrets with the numbers from `first` to before `last`."""

    def create(writer: int) -> Counter[int]:
        wanted = range(first + writer, last, WRITERS)
        bodies = (secret(f"s{number}", f"text of s{number}") for number in wanted)
        answers = world.api.requests("POST", NAMESPACE, bodies)
        return Counter(status for status, _ in answers)

    with ThreadPoolExecutor(WRITERS) as writers:
        statuses = sum(writers.map(create, range(WRITERS)), Counter())
    if set(statuses) != {CREATED}:
        raise SystemExit(f"Secrets were not created: {dict(statuses)}")


def _restart(world: World, mode: Mode, shim: Shim, number: int) -> dict[str, float]:
    """Start plugin and API server anew; return what that takes."""
    world.api.stop()
    if mode.version:
        world.plugin.restart()
    before = shim.calls("C_Decrypt")
    began = time.monotonic()
    world.api.restart(seconds=LONG)
    wait_for("all Secrets", lambda: _listed(world) == number, timeout=LONG)
    metrics = {"seconds": time.monotonic() - began}
    if mode.version:
        metrics["c_decrypts"] = shim.calls("C_Decrypt") - before
        began = time.monotonic()
        scan = ("etcd", "scan", "--endpoints", world.etcd.url, "-o", "json")
        subprocess.run([*HSM_KMS, *scan], check=True, capture_output=True)
        metrics["scan_seconds"] = time.monotonic() - began
    return metrics


def _listed(world: World) -> int:
    """Return how many Secrets the API server lists, 0 if it fails."""
    status, body = world.api.get(NAMESPACE)
    return len(json.loads(body)["items"]) if status == OK else 0
