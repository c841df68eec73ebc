"""Render the metrics; docs/metrics.md explains each name.

Labels are enumerations, CKR names, or `sha256:` hashes of key_ids as in the metrics of
the API server. Nothing that came in a request is ever a label.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from hsm_kms import __version__
from hsm_kms.http import families
from hsm_kms.http.audit_metrics import audit_metrics
from hsm_kms.http.values import HEALTH
from hsm_kms.keys.keyring import KeyState
from hsm_kms.token.ends import End
from hsm_kms.wrapping.nonce_budget import STOP_AT, WARN_AT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

    from hsm_kms.http.requests import RequestCounts
    from hsm_kms.http.values import Snapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LIMITS: Final = {"warning": WARN_AT, "stop": STOP_AT}
_PIN: Final = ("none", "absent", "untried", "proven", "rejected", "corrupt")


class Metrics:
    """Render the metrics of one server.

    Args:
        requests: Counts of requests.
        read: Returns the present values; called on the event loop.
    """

    def __init__(self, requests: RequestCounts, read: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_Collector(requests, read))

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _Collector:
    """Turn counts and present values into metrics at each scrape."""

    def __init__(self, requests: RequestCounts, read: Callable[[], Snapshot]) -> None:
        self._requests = requests
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return no names: the registry must not read all values to learn them."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield one metric family after the other."""
        yield from self._requests.collect()
        now = self._read()
        for each in (_health, _keys, _workers, _sessions, _calls, _local_keks, _server):
            yield from each(now)
        yield from audit_metrics(now.audit)


def _health(now: Snapshot) -> Iterable[Metric]:
    yield families.one_of(
        "hsm_kms_health", "1 for the present state of health.", HEALTH, now.health
    )
    yield from families.moment(
        "hsm_kms_health_since_timestamp_seconds",
        "When the state of health became what it is.",
        now.health_since,
    )
    yield from families.moment(
        "hsm_kms_last_status_timestamp_seconds",
        "When the API server last asked for Status.",
        now.status_when,
    )
    yield from families.moment(
        "hsm_kms_canary_last_success_timestamp_seconds",
        "When a canary last passed.",
        now.canary_passed_when,
    )
    yield from families.moment(
        "hsm_kms_canary_last_failure_timestamp_seconds",
        "When an inspection of the token last failed.",
        now.canary_failed_when,
    )
    yield families.number(
        "hsm_kms_token_slow",
        "1 while canaries pass, but take longer than call_timeout.",
        now.slow,
    )
    if now.health_key_usable is not None:
        yield families.number(
            "hsm_kms_health_key_usable",
            "0 while canaries under health.key cannot be made.",
            now.health_key_usable,
        )
    yield families.number(
        "hsm_kms_breaker_open",
        "1 while requests fail without asking the token.",
        now.breaker_open,
    )
    yield families.total(
        "hsm_kms_breaker_openings",
        "How often requests began to fail without asking the token.",
        now.counts.breaker_openings,
    )


def _keys(now: Snapshot) -> Iterable[Metric]:
    if now.key_id_hash:
        yield families.info(
            "hsm_kms_current_key_info",
            "The key that Status announces.",
            key_id_hash=now.key_id_hash,
        )
    states = Counter(now.key_states.values())
    held = {str(name): states[name] for name in KeyState}
    yield families.gauges("hsm_kms_keys", "Keys held.", "state", held)
    yield families.infos(
        "hsm_kms_key_info",
        "Each key held, with its state.",
        ("key_id_hash", "state"),
        sorted(now.key_states.items()),
    )
    yield families.gauges(
        "hsm_kms_key_activation_timestamp_seconds",
        "When a key becomes or became current.",
        "key_id_hash",
        dict(sorted(now.activations.items())),
    )
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


def _workers(now: Snapshot) -> Iterable[Metric]:
    yield families.number("hsm_kms_workers", "Token workers that serve.", now.workers)
    yield families.number(
        "hsm_kms_workers_unkillable",
        "Token workers that SIGKILL has not ended.",
        now.unkillable,
    )
    yield families.counts(
        "hsm_kms_worker_ends",
        "Token workers that ended.",
        "reason",
        now.counts.ends,
        End,
    )
    yield families.counts(
        "hsm_kms_logins",
        "Logins of token workers.",
        "result",
        now.counts.logins,
        ("ok", "rejected", "failed"),
    )
    yield families.one_of(
        "hsm_kms_pin", "1 for what is known about the PIN.", _PIN, now.pin
    )


def _sessions(now: Snapshot) -> Iterable[Metric]:
    yield families.number("hsm_kms_sessions", "Token sessions held.", now.sessions)
    yield families.number(
        "hsm_kms_sessions_idle", "Token sessions not in use.", now.idle
    )
    yield families.number(
        "hsm_kms_session_waiters", "Requests waiting for a session.", now.waiting
    )
    yield families.total(
        "hsm_kms_session_waits",
        "Requests that waited for a session, and got one.",
        now.counts.waits,
    )
    yield families.total(
        "hsm_kms_session_wait_seconds",
        "Seconds that these requests waited.",
        now.counts.wait_seconds,
    )


def _calls(now: Snapshot) -> Iterable[Metric]:
    counts = now.counts
    yield families.counts(
        "hsm_kms_token_calls", "Requests sent to the token.", "operation", counts.calls
    )
    yield families.counts(
        "hsm_kms_token_errors", "Failures of the token.", "ckr", counts.errors
    )
    yield families.total(
        "hsm_kms_decrypts_joined",
        "Decrypts that joined the token call of another one.",
        now.joined,
    )
    yield families.counts(
        "hsm_kms_pkcs11_calls",
        "Calls of the functions of the PKCS#11 module.",
        "function",
        counts.functions.calls,
    )
    yield families.counts(
        "hsm_kms_pkcs11_seconds",
        "Seconds inside the functions of the PKCS#11 module.",
        "function",
        counts.functions.seconds,
    )


def _local_keks(now: Snapshot) -> Iterable[Metric]:
    yield families.number(
        "hsm_kms_local_kek_uses",
        "DEKs wrapped by the current local KEK.",
        now.local_uses,
    )
    yield families.number(
        "hsm_kms_local_kek_age_seconds",
        "Age of the current local KEK.",
        now.local_age,
    )
    yield families.number(
        "hsm_kms_local_keks_cached", "Local KEKs in memory.", now.local_cached
    )
    yield families.counts(
        "hsm_kms_local_keks_created",
        "Local KEKs created.",
        "result",
        now.counts.created,
        ("ok", "failed"),
    )


def _server(now: Snapshot) -> Iterable[Metric]:
    yield families.info("hsm_kms_build_info", "The version.", version=__version__)
    yield families.number(
        "hsm_kms_config_in_force",
        "0 while the configuration file differs from the configuration in force.",
        now.config_in_force,
    )
    yield families.counts(
        "hsm_kms_config_reloads",
        "Changed configuration files, applied or rejected.",
        "result",
        now.reloads,
        ("applied", "rejected"),
    )
    yield families.number(
        "hsm_kms_state_dir_writable",
        "1 if the last attempt to write the state directory succeeded.",
        now.state_writable,
    )
    yield families.counts(
        "hsm_kms_http_listen_failures",
        "Attempts to listen for HTTP that failed.",
        "listener",
        now.http_failures,
    )
