"""Everything that is counted, for Prometheus; docs/metrics.md explains each name.

Labels are enumerations of ours, CKR names, or `sha256:` hashes of key_ids as the API
server's own metrics have them; nothing that came in a request is ever a label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hsm_kms import __version__
from hsm_kms.keyring import KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5)
_STATES: Final = ("starting", "ok", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is read when somebody asks.

    Args:
        health: "starting", "ok" or "failed".
        key_id_hash: Of the announced key_id, or "".
        keys: Keys held, by state.
        workers: Workers that serve.
        restarts: Workers that ended, by reason.
        sessions: Sessions held.
        idle: Of them idle.
        waiting: Requests waiting for a session.
        calls: Requests sent to the token, by operation.
        errors: Failures of the token, by CKR name.
        breaker_open: Whether requests fail without asking the token.
        pin: Verdict on the PIN: "none", "untried", "proven", "rejected", "corrupt".
    """

    health: str
    key_id_hash: str
    keys: Mapping[str, int] = field(default_factory=dict)
    workers: int
    restarts: Mapping[str, int] = field(default_factory=dict)
    sessions: int
    idle: int
    waiting: int
    calls: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    breaker_open: bool
    pin: str


class Metrics:
    """The registry of one server.

    Args:
        read: Makes a snapshot; called on the event loop.
    """

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests = Counter(
            "hsm_kms_requests_total",
            "KMS requests answered.",
            ("method", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "hsm_kms_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            ("method",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Snapshots(read))

    def request(self, method: str, code: str, seconds: float) -> None:
        """Count a request.

        Args:
            method: API and method, such as "v2.Encrypt".
            code: Name of the gRPC status code.
            seconds: How long it took.
        """
        self._requests.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)


class _Snapshots:
    """Turns a snapshot into metrics at each scrape."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry shall not take a snapshot to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One metric family after the other."""
        now = self._read()
        yield _gauge("hsm_kms_info", "The version served.", version=__version__)
        state = GaugeMetricFamily(
            "hsm_kms_health", "1 for the present state of health.", labels=["state"]
        )
        for name in _STATES:
            state.add_metric([name], float(name == now.health))
        yield state
        if now.key_id_hash:
            yield _gauge(
                "hsm_kms_current_key",
                "The announced key, as the API server's metrics name it.",
                key_id_hash=now.key_id_hash,
            )
        held = GaugeMetricFamily("hsm_kms_keys", "Keys held.", labels=["state"])
        for name in KeyState:
            held.add_metric([name], float(now.keys.get(name, 0)))
        yield held
        yield _number("hsm_kms_workers", "Token workers that serve.", now.workers)
        yield _number("hsm_kms_sessions", "Token sessions held.", now.sessions)
        yield _number("hsm_kms_sessions_idle", "Token sessions not in use.", now.idle)
        yield _number(
            "hsm_kms_session_waiters", "Requests waiting for a session.", now.waiting
        )
        yield _number(
            "hsm_kms_breaker_open",
            "1 while requests fail without asking the token.",
            now.breaker_open,
        )
        yield _gauge("hsm_kms_pin", "The verdict on the PIN.", verdict=now.pin)
        yield _counts(
            "hsm_kms_worker_ends", "Token workers that ended.", "reason", now.restarts
        )
        yield _counts(
            "hsm_kms_token_calls", "Requests sent to the token.", "operation", now.calls
        )
        yield _counts(
            "hsm_kms_token_errors", "Failures of the token.", "ckr", now.errors
        )


def _number(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _gauge(name: str, text: str, **labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def _counts(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], float(count))
    return family
