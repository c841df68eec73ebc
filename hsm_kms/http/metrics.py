"""Count requests and render the metrics; docs/metrics.md explains each name.

Labels are enumerations, CKR names, or `sha256:` hashes of key_ids as in the metrics of
the API server. Nothing that came in a request is ever a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from hsm_kms import __version__
from hsm_kms.http import families
from hsm_kms.keys.keyring import KeyState
from hsm_kms.wrapping.nonce_budget import STOP_AT, WARN_AT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Requests: TypeAlias = Mapping[tuple[str, str, str], "_Tally"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5)
_BOUNDS: Final = (*map(floatToGoString, _SECONDS), "+Inf")
_LIMITS: Final = {"warning": WARN_AT, "stop": STOP_AT}
_STATES: Final = ("starting", "ok", "degraded", "failed")
_PIN: Final = ("none", "absent", "untried", "proven", "rejected", "corrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Hold the values that are read at each scrape.

    Args:
        health: "starting", "ok", "degraded" or "failed".
        key_id_hash: Hash of the announced key_id; "" before there is one.
        keys: Number of keys held, by state.
        unidentified: Number of keys on the token that could not be identified.
        same_names: Number of keys held whose CKA_LABEL and CKA_ID another key has, too.
        workers: Number of workers that serve.
        unkillable: Number of workers that cannot be killed.
        ends: Number of workers that ended, by reason.
        sessions: Number of sessions held.
        idle: Number of sessions that are not in use.
        waiting: Number of requests that wait for a session.
        calls: Number of requests sent to the token, by operation.
        errors: Number of errors of the token, by CKR name.
        slow: True if the latest canary passed late.
        breaker_open: True if requests fail without asking the token.
        pin: What is known about the PIN: "none", "absent", "untried", "proven",
            "rejected" or "corrupt".
        local_uses: Number of DEKs that the current local KEK has wrapped; 0 if there is
            none.
        local_cached: Number of local KEKs in memory.
        local_created: Number of attempts to create a local KEK, by result: "ok" or
            "failed".
        kek_wraps: Wraps by AES-GCM under a KEK that count on this node, by hash of its
            key_id.
        http_failures: Failed attempts to listen for HTTP, by kind of address.
        config_in_force: True if the configuration file is in force as it is now.
    """

    health: str
    key_id_hash: str
    keys: Mapping[str, int] = field(default_factory=dict)
    unidentified: int = 0
    same_names: int = 0
    workers: int
    unkillable: int = 0
    ends: Mapping[str, int] = field(default_factory=dict)
    sessions: int
    idle: int
    waiting: int
    calls: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    slow: bool = False
    breaker_open: bool
    pin: str
    local_uses: int = 0
    local_cached: int = 0
    local_created: Mapping[str, int] = field(default_factory=dict)
    kek_wraps: Mapping[str, int] = field(default_factory=dict)
    http_failures: Mapping[str, int] = field(default_factory=dict)
    config_in_force: bool = True


class _Tally:
    """Count the requests of one method, code and path."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0


class Metrics:
    """Keep the counts of one server.

    Args:
        read: Returns the present values; called on the event loop.
    """

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests: defaultdict[tuple[str, str, str], _Tally] = defaultdict(_Tally)
        self._registry.register(_Collector(self._requests, read))

    def request(self, method: str, code: str, seconds: float, path: str) -> None:
        """Count a request.

        Args:
            method: API and method, such as "v2.Encrypt".
            code: Name of the gRPC status code.
            seconds: Time from its arrival to its answer, in seconds.
            path: What encrypted or decrypted the DEK, see `wrapping.wrapper.Path`; ""
                if nothing did.
        """
        # prometheus_client's own counters would take 3 us for each request.
        tally = self._requests[method, code, path]
        tally.buckets[bisect_left(_SECONDS, seconds)] += 1
        tally.seconds += seconds

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _Collector:
    """Turn counts and present values into metrics at each scrape.

    Args:
        requests: Counts by method, code and path.
        read: Returns the present values.
    """

    def __init__(self, requests: Requests, read: Callable[[], Snapshot]) -> None:
        self._requests = requests
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return no names: the registry must not read all values to learn them."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield one metric family after the other."""
        yield from _of_requests(self._requests)
        yield from _of_snapshot(self._read())


def _of_requests(requests: Requests) -> Iterable[Metric]:
    answers: Counter[tuple[str, ...]] = Counter()
    operations: Counter[tuple[str, ...]] = Counter()
    times: defaultdict[str, list[_Tally]] = defaultdict(list)
    for (method, code, path), tally in requests.items():
        count = sum(tally.buckets)
        answers[method, code] += count
        if path and code == "OK":
            operations[method, path] += count
        times[method].append(tally)
    yield families.counter(
        "hsm_kms_requests", "KMS requests answered.", ("method", "code"), answers
    )
    yield families.counter(
        "hsm_kms_dek_operations",
        "DEKs encrypted and decrypted.",
        ("method", "path"),
        operations,
    )
    seconds = HistogramMetricFamily(
        "hsm_kms_request_duration_seconds",
        "Time from a request's arrival to its answer.",
        labels=["method"],
    )
    for method, tallies in sorted(times.items()):
        each = map(sum, zip(*(tally.buckets for tally in tallies), strict=True))
        seconds.add_metric(
            [method],
            [(b, float(n)) for b, n in zip(_BOUNDS, accumulate(each), strict=True)],
            sum(tally.seconds for tally in tallies),
        )
    yield seconds


def _of_snapshot(now: Snapshot) -> Iterable[Metric]:
    yield families.info("hsm_kms_build_info", "The version.", version=__version__)
    yield families.one_of(
        "hsm_kms_health", "1 for the present state of health.", _STATES, now.health
    )
    if now.key_id_hash:
        yield families.info(
            "hsm_kms_current_key_info",
            "The key that Status announced.",
            key_id_hash=now.key_id_hash,
        )
    held = {str(name): now.keys.get(name, 0) for name in KeyState}
    yield families.gauges("hsm_kms_keys", "Keys held.", "state", held)
    yield families.number(
        "hsm_kms_keys_unidentified",
        "Keys on the token that could not be identified.",
        now.unidentified,
    )
    yield families.number(
        "hsm_kms_keys_with_same_names",
        "Keys held whose CKA_LABEL and CKA_ID another key has, too.",
        now.same_names,
    )
    yield families.number("hsm_kms_workers", "Token workers that serve.", now.workers)
    yield families.number(
        "hsm_kms_workers_unkillable",
        "Token workers that SIGKILL has not ended.",
        now.unkillable,
    )
    yield families.number("hsm_kms_sessions", "Token sessions held.", now.sessions)
    yield families.number(
        "hsm_kms_sessions_idle", "Token sessions not in use.", now.idle
    )
    yield families.number(
        "hsm_kms_session_waiters", "Requests waiting for a session.", now.waiting
    )
    yield families.number(
        "hsm_kms_token_slow",
        "1 while canaries pass, but take longer than call_timeout.",
        now.slow,
    )
    yield families.number(
        "hsm_kms_breaker_open",
        "1 while requests fail without asking the token.",
        now.breaker_open,
    )
    yield families.number(
        "hsm_kms_config_in_force",
        "0 while the configuration file differs from the configuration in force.",
        now.config_in_force,
    )
    yield families.one_of(
        "hsm_kms_pin", "1 for what is known about the PIN.", _PIN, now.pin
    )
    yield families.counts(
        "hsm_kms_worker_ends", "Token workers that ended.", "reason", now.ends
    )
    yield families.counts(
        "hsm_kms_token_calls", "Requests sent to the token.", "operation", now.calls
    )
    yield families.counts(
        "hsm_kms_token_errors", "Failures of the token.", "ckr", now.errors
    )
    yield families.counts(
        "hsm_kms_http_listen_failures",
        "Attempts to listen for HTTP that failed.",
        "listener",
        now.http_failures,
    )
    yield from _of_local_keks(now)
    yield from _of_budget(now)


def _of_local_keks(now: Snapshot) -> Iterable[Metric]:
    yield families.number(
        "hsm_kms_local_kek_uses",
        "DEKs wrapped by the current local KEK.",
        now.local_uses,
    )
    yield families.number(
        "hsm_kms_local_keks_cached", "Local KEKs in memory.", now.local_cached
    )
    yield families.counts(
        "hsm_kms_local_keks_created",
        "Local KEKs created.",
        "result",
        now.local_created,
    )


def _of_budget(now: Snapshot) -> Iterable[Metric]:
    yield families.gauges(
        "hsm_kms_kek_wraps",
        "Wraps by AES-GCM under a KEK that count on this node.",
        "key_id_hash",
        dict(sorted(now.kek_wraps.items())),
    )
    yield families.gauges(
        "hsm_kms_kek_wraps_limit",
        "Values of hsm_kms_kek_wraps that cause a warning, and that stop Encrypt.",
        "level",
        _LIMITS,
    )
