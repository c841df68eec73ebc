"""Say in words what the figures mean for a cluster; nothing here touches a token.

What Kubernetes asks of a plugin is on its page about KMS providers: an Encrypt should
take less than 100 ms, a Decrypt less than 10 ms.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.cli.bench.load import GAIN, Measured, Step
from hsm_kms.cli.columns import aligned
from hsm_kms.cli.report import Report
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.config.schema import Config

ENCRYPT_MS: Final = 100.0
DECRYPT_MS: Final = 10.0
_TOO_SLOW: Final = 0.5  # of token.call_timeout, at the 99th percentile
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the longest of some times, all in milliseconds."""
    ordered = sorted(times) or [0.0]
    found = {
        name: ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        for name, share in _QUANTILES.items()
    }
    return {**found, "max": ordered[-1]}


def table(steps: Sequence[Step]) -> list[str]:
    """Return the table of what was measured, one line for each number of sessions."""
    rows = [["SESSIONS", "PER SECOND", "ENCRYPT", "P99", "DECRYPT", "P99"]]
    for step in steps:
        encrypts, decrypts = quantiles(step.encrypts), quantiles(step.decrypts)
        cells = (encrypts["p50"], encrypts["p99"], decrypts["p50"], decrypts["p99"])
        times = [f"{each:.1f} ms" for each in cells]
        rows.append([str(step.sessions), f"{step.rate:.0f}", *times])
    return aligned(rows)


def that_pay_off(steps: Sequence[Step]) -> Step:
    """Return the step after which more sessions make the token hardly faster."""
    best = steps[0]
    for step in steps[1:]:
        if step.rate < GAIN * best.rate:
            break
        best = step
    return best


def restart_seconds(steps: Sequence[Step], secrets: int) -> dict[str, float]:
    """Return what a restart of the API server costs the token, in seconds.

    The API server decrypts one value after the other, so that one session counts.

    Args:
        steps: What was measured.
        secrets: Number of Secrets, or of other objects, that are stored.
    """
    one = statistics.median(steps[0].decrypts) / 1000
    return {
        "one_seed": one,
        "seed_for_each": one * secrets,
        "v1_by_token": one * secrets,
    }


def judge(config: Config, measured: Measured, secrets: int) -> Report:
    """Return the answers.

    Args:
        config: The configuration.
        measured: What was measured.
        secrets: Number of Secrets to reckon with.
    """
    report = Report()
    if measured.trouble is not None:
        report.fail("trouble", "stopped", measured.trouble)
    steps = measured.steps
    if not steps:
        report.skip(["latency", "sessions", "restart"], "nothing was measured")
        return report
    _latency(report, config, steps[0])
    _sessions(report, config, steps, stopped=measured.trouble is not None)
    _restart(report, config, steps, secrets)
    return report


def _latency(report: Report, config: Config, step: Step) -> None:
    encrypts, decrypts = quantiles(step.encrypts), quantiles(step.decrypts)
    what = f"Encrypt {encrypts['p50']:.1f} ms, Decrypt {decrypts['p50']:.1f} ms"
    most = _TOO_SLOW * config.token.call_timeout * 1000
    slowest = max(encrypts["p99"], decrypts["p99"])
    if slowest > most:
        cause = f"{what}; one in a hundred takes {slowest:.0f} ms or longer"
        hint = (
            f"token.call_timeout is {config.token.call_timeout:g} s: requests fail "
            "when the token is busy; ask the vendor of the HSM for the cause"
        )
        report.fail("latency", "too slow", HsmKmsError(cause, hint=hint))
    elif encrypts["p50"] > ENCRYPT_MS or decrypts["p50"] > DECRYPT_MS:
        report.warn(
            "latency",
            f"fast enough, but slower than Kubernetes recommends: {what}",
            f"recommended are {ENCRYPT_MS:g} ms and {DECRYPT_MS:g} ms; with KMS v2, "
            "writes of Secrets do not wait for the token, but a start of the API "
            "server does",
        )
    else:
        report.ok("latency", f"fast enough for any cluster with KMS v2: {what}")


def _sessions(
    report: Report, config: Config, steps: list[Step], *, stopped: bool
) -> None:
    best = that_pay_off(steps)
    configured = config.token.workers * config.token.sessions_per_worker
    has = f"the configuration opens {count_of(configured, 'session')}"
    made = f"{count_of(best.sessions, 'session')} made {best.rate:.0f} calls a second"
    if best.limited:
        report.ok(
            "sessions",
            f"{made}, which is the limit of --rate; more were not tried, and {has}",
        )
    elif best is steps[-1]:
        why = "the measurement was stopped" if stopped else "more were not tried"
        report.ok("sessions", f"{made}, the most so far: {why}; {has}")
    elif best.sessions > configured:
        report.warn(
            "sessions",
            f"{made}, and more sessions hardly more; {has}",
            "raise token.sessions_per_worker if KMS v1 wraps by the token",
        )
    else:
        report.ok("sessions", f"{made}, and more sessions hardly more; {has}")


def _restart(report: Report, config: Config, steps: list[Step], secrets: int) -> None:
    cost = restart_seconds(steps, secrets)
    objects = f"{secrets:,} Secrets"
    report.ok(
        "restart",
        f"a start of the API server, KMS v2: {_time(cost['one_seed'])} of the token "
        f"for each seed in etcd; at most {_time(cost['seed_for_each'])}, if each of "
        f"{objects} has a seed of its own",
    )
    days = config.local_keys.max_age / 86400
    report.ok(
        "restart",
        f"KMS v1, wrapping: software: {_time(cost['one_seed'])} of the token for each "
        f"local KEK, one for {config.local_keys.max_uses:,} writes or {days:g} d; "
        "decrypting the Secrets takes no call of the token",
    )
    report.ok(
        "restart",
        f"KMS v1, wrapping: token: {_time(cost['v1_by_token'])} of the token for "
        f"{objects}, one after the other",
    )


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.1f} h"


def as_json(measured: Measured, secrets: int) -> dict[str, Any]:
    """Return the figures for scripts; docs/commands.md describes the members."""
    steps = measured.steps
    return {
        "mechanism": measured.mechanism,
        "steps": [
            {
                "sessions": step.sessions,
                "seconds": round(step.seconds, 3),
                "per_second": round(step.rate, 1),
                "limited": step.limited,
                "encrypt_ms": _rounded(step.encrypts),
                "decrypt_ms": _rounded(step.decrypts),
            }
            for step in steps
        ],
        "sessions_that_pay_off": that_pay_off(steps).sessions if steps else None,
        "secrets": secrets,
        "restart_seconds": restart_seconds(steps, secrets) if steps else None,
    }


def _rounded(times: list[float]) -> dict[str, float]:
    return {name: round(each, 3) for name, each in quantiles(times).items()}
