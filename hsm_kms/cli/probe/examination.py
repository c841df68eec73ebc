"""Try a KMS plugin through its socket: each call of an API, several times.

What is encrypted is random, of no use to anybody, and never printed.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from hsm_kms.cli.listening import require_kms
from hsm_kms.cli.probe.apis import SEED_BYTES, Api, ApiV1, ApiV2
from hsm_kms.cli.probe.client import CallError, Client, Cost
from hsm_kms.cli.report import Finding, Report, because
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.cli.listening import Refused

ROUNDS: Final = 5
STEPS: Final = ("socket", "status", "encrypt", "decrypt")
EXPECTED: Final = "key-id"
COST: Final = "cost"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Say what is to be tried.

    Args:
        socket: Path of the KMS socket.
        api: Which API; "auto" for v2, or for v1 if the plugin does not serve v2.
        timeout: Seconds for each call.
        expected_key_id: The key_id that Status must report, or None.
    """

    socket: str
    api: Literal["auto", "v2", "v1"]
    timeout: float
    expected_key_id: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was found.

    Args:
        findings: The findings, in order.
        api: The API that was tried, "v2" or "v1"; "" if the socket cannot be used.
        version: What Status or Version reported, "" if nothing; so are the next two.
        healthz: What Status reported.
        key_id: What Status reported.
        milliseconds: How long the calls took that were answered, by method.
    """

    findings: list[Finding]
    api: str = ""
    version: str = ""
    healthz: str = ""
    key_id: str = ""
    milliseconds: dict[str, Cost] = {}


def examine(request: Request, refused: Refused | None = None) -> Result:
    """Try the plugin as this process's user.

    Args:
        request: What is to be tried.
        refused: As for `require_kms`.
    """
    report = Report()
    socket = Path(request.socket)
    try:
        pid = require_kms(socket, request.timeout, refused)
    except HsmKmsError as error:
        report.fail("socket", "socket", error)
        expected = () if request.expected_key_id is None else (EXPECTED,)
        report.skip((*STEPS[1:], *expected), because("socket"))
        return Result(findings=report.findings)
    process = f"process {pid}" if pid else "a process"
    report.ok("socket", f"socket {socket}: {process} serves gRPC on it")
    with Client(socket, request.timeout) as client:
        api = _api(client, request.api)
        _talk(report, api)
    if request.expected_key_id is not None:
        _note_key_id(report, api, request.expected_key_id)
    if client.costs:
        report.ok(COST, _in_words(client.costs))
    return Result(
        findings=report.findings,
        api=api.name,
        version=api.version,
        healthz=api.healthz,
        key_id=api.key_id,
        milliseconds=client.costs,
    )


def _api(client: Client, wanted: str) -> Api:
    if wanted == "v1" or (wanted == "auto" and not client.serves_v2()):
        return ApiV1(client)
    return ApiV2(client)


def _talk(report: Report, api: Api) -> None:
    """Make all calls of some rounds, and note how the last round went."""
    plaintext = api.first
    found = _round(api, plaintext)
    for _ in range(ROUNDS - 1):
        if any(found.values()):
            break
        plaintext = secrets.token_bytes(SEED_BYTES)
        found = _round(api, plaintext)
    size = f"{len(plaintext)} bytes"
    told = {
        "status": (api.greeting, api.greeted()),
        "encrypt": (
            f"Encrypt of {size}",
            f"made a ciphertext of {api.size} bytes{api.encrypted()}",
        ),
        "decrypt": ("Decrypt", f"returned the same {size}"),
    }
    for step, (what, success) in told.items():
        if step not in found:
            report.skip([step], because("encrypt"))
            continue
        for error in found[step]:
            report.fail(step, what, error)
        if not found[step]:
            report.ok(step, f"{what}: {success}")


def _round(api: Api, plaintext: bytes) -> dict[str, list[HsmKmsError]]:
    """Make each call once; return what is wrong by step, of each step that ran."""
    found = {
        "status": _faults(api.greet),
        "encrypt": _faults(lambda: api.encrypt(plaintext)),
    }
    if api.size is not None:
        found["decrypt"] = _faults(lambda: api.decrypt(plaintext))
    return found


def _faults(call: Callable[[], Iterator[HsmKmsError]]) -> list[HsmKmsError]:
    try:
        return list(call())
    except CallError as error:
        return [error]


def _note_key_id(report: Report, api: Api, expected: str) -> None:
    if api.key_id == expected:
        report.ok(EXPECTED, "the key_id is the expected one")
        return
    cause = f'it is "{printable(api.key_id)}", and "{printable(expected)}" was expected'
    if not api.key_id:
        cause = "the plugin reported none"
    hint = "wait until the plugin reports it (--wait), or see which keys it has"
    report.fail(EXPECTED, "key_id", HsmKmsError(cause, hint=hint))


def _in_words(costs: dict[str, Cost]) -> str:
    parts = (
        f"{method} {cost.median:.1f} ms (slowest of {cost.calls}: {cost.slowest:.1f})"
        for method, cost in costs.items()
    )
    return f"cost of a call: {', '.join(parts)}"
