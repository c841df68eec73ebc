"""Read the present state of the server, for the metrics and for /status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hsm_kms import __version__
from hsm_kms.clock import when
from hsm_kms.http.values import Snapshot
from hsm_kms.keys.keyring import DOUBT_HINT
from hsm_kms.log import key_id_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.audit.report import AuditReport
    from hsm_kms.errors import HsmKmsError
    from hsm_kms.health.health_key import HealthKey
    from hsm_kms.http.requests import RequestCounts
    from hsm_kms.http.server import HttpServer
    from hsm_kms.keys.keyring import (
        Keyring,
        Pending,
    )
    from hsm_kms.server.engine import Lasting
    from hsm_kms.server.reload import Rejected, Reload
    from hsm_kms.server.takeover import InForce
    from hsm_kms.token.alarm import Alarm


def snapshot(
    in_force: InForce,
    lasting: Lasting,
    http: HttpServer,
    reload: Reload,
    audit: AuditReport,
) -> Snapshot:
    """Return the values that the metrics show now.

    Args:
        in_force: The engine in force.
        lasting: What outlives it.
        http: The listeners for probes, metrics and /status.
        reload: Knows if the configuration file is in force.
        audit: How the audit stream is.
    """
    engine = in_force.engine
    health = engine.health.look()
    stats = engine.pool.stats()
    ring = engine.keys.ring
    return Snapshot(
        counts=lasting.counts,
        health=health.state,
        health_since=engine.health.since,
        status_when=in_force.announced_when,
        key_id_hash=key_id_hash(health.key_id) if health.key_id else "",
        key_states=_states(ring),
        activations=_activations(ring),
        unidentified=len(ring.unidentified) if ring else 0,
        same_names=len(ring.twins) if ring else 0,
        workers=len(engine.workers.ready),
        unkillable=len(lasting.unkillable.pids),
        sessions=stats.sessions,
        idle=stats.idle,
        waiting=stats.waiting,
        canary_passed_when=engine.canaries.passed_when,
        canary_failed_when=engine.canaries.failed_when,
        slow=engine.canaries.slow,
        health_key_usable=_usable(engine.health_key),
        breaker_open=engine.pool.breaker.is_open,
        pin=engine.login.verdict.word,
        local_uses=engine.local.uses,
        local_cached=len(engine.opened),
        local_age=engine.local.age,
        joined=engine.opening.joined,
        kek_wraps=_wraps(ring, lasting.budget.used),
        http_failures={each.address.kind: each.failures for each in http.listeners},
        config_in_force=reload.rejected is None,
        reloads=reload.outcomes,
        state_writable=lasting.state.writable,
        audit=audit,
    )


def _usable(health_key: HealthKey | None) -> bool | None:
    return None if health_key is None else health_key.error is None


def health_key_of(health_key: HealthKey | None) -> dict[str, Any] | None:
    """Return the health key, and why it cannot be used, as /status shows it.

    Args:
        health_key: The health key; None if there is none.
    """
    if health_key is None:
        return None
    error = health_key.error
    return {"label": health_key.label, "error": error.sentence if error else None}


def _states(ring: Keyring | None) -> dict[str, str]:
    if ring is None:
        return {}
    return {key_id_hash(key.key_id): str(ring.state(key)) for key in ring.keys}


def _activations(ring: Keyring | None) -> dict[str, float]:
    """Return the activation times; a key that no `keys generate` made has none."""
    keys = ring.keys if ring is not None else ()
    return {key_id_hash(key.key_id): key.activation for key in keys if key.activation}


def _wraps(ring: Keyring | None, used: Mapping[str, int]) -> dict[str, int]:
    keys = ring.keys if ring is not None else ()
    return {
        key_id_hash(key.key_id): used[key.fingerprint]
        for key in keys
        if key.fingerprint in used
    }


def keys_of(ring: Keyring | None) -> list[dict[str, Any]]:
    """Return the keys held, each with its state on this node, as /status shows them.

    Args:
        ring: The keyring as last read; None before that.
    """
    if ring is None:
        return []
    pending = {each.key.name: each for each in ring.pending}
    twins = {key.found_by for key in ring.twins}
    return [
        {
            "key_id": key.key_id,
            "state": ring.state(key),
            "label": key.ref.label,
            "cka_id": key.ref.cka_id.hex(),
            "mechanism": key.mechanism,
            "generated_on_token": key.born_here,
            "activation": key.activation,
            **_coming(pending.get(key.name)),
            "policy_violations": list(key.violations),
            "same_names": key.found_by in twins,
        }
        for key in ring.keys
    ]


def _coming(pending: Pending | None) -> dict[str, str | None]:
    """Return when a key becomes current, and why it does not by its time."""
    at = pending.at if pending is not None else None
    doubt = pending.doubt if pending is not None else ""
    return {
        "current_from": when(at) if at is not None else None,
        "doubt": f"{doubt}; {DOUBT_HINT}" if doubt else None,
    }


def unidentified_of(ring: Keyring | None) -> list[dict[str, Any]]:
    """Return the keys that could not be identified, as /status shows them.

    Args:
        ring: The keyring as last read; None before that.
    """
    return [
        {
            "label": each.ref.label,
            "cka_id": each.ref.cka_id.hex(),
            "reason": each.error.sentence,
        }
        for each in (ring.unidentified if ring is not None else ())
    ]


def _when(seconds: float | None) -> str | None:
    return when(seconds) if seconds is not None else None


def config_of(rejected: Rejected | None) -> dict[str, Any]:
    """Return if the configuration file is in force, as /status shows it.

    Args:
        rejected: Why it is not; None if it is.
    """
    if rejected is None:
        return {"in_force": True, "since": None, "error": None}
    since = when(rejected.since)
    return {"in_force": False, "since": since, "error": rejected.reason}


def _cause_of(error: HsmKmsError | None) -> dict[str, str | None]:
    """Return cause and cure; None where there is none."""
    if error is None:
        return {"cause": None, "cure": None}
    return {"cause": str(error), "cure": error.hint}


def _fault_of(alarm: Alarm) -> dict[str, str] | None:
    if alarm.last_fault is None:
        return None
    at, error = alarm.last_fault
    return {"time": when(at), "error": error}


def status_of(
    in_force: InForce,
    lasting: Lasting,
    http: HttpServer,
    reload: Reload,
    requests: RequestCounts,
    audit: AuditReport,
) -> dict[str, Any]:
    """Return the content of /status: names and counts, but no secrets.

    Args:
        in_force: The engine in force.
        lasting: What outlives it.
        http: The listeners for probes, metrics and /status.
        reload: Knows if the configuration file is in force.
        requests: Counts of requests.
        audit: How the audit stream is.
    """
    engine, counts = in_force.engine, lasting.counts
    health = engine.health.look()
    now = snapshot(in_force, lasting, http, reload, audit)
    return {
        "version": __version__,
        "started": when(lasting.started),
        "state": health.state,
        "since": when(engine.health.since),
        "healthz": health.healthz,
        "status_available": health.answers,
        "last_status": _when(in_force.announced_when),
        "detail": engine.health.detail,
        **_cause_of(engine.health.error),
        "key_id": health.key_id,
        "key_id_hash": now.key_id_hash,
        "keys": keys_of(engine.keys.ring),
        "unidentified_keys": unidentified_of(engine.keys.ring),
        "workers": {
            "ready": now.workers,
            "unkillable": lasting.unkillable.pids,
            "ended": dict(counts.ends),
        },
        "sessions": {
            "held": now.sessions,
            "idle": now.idle,
            "waiting": now.waiting,
        },
        "canary": {
            "kind": engine.config.health.canary,
            "health_key": health_key_of(engine.health_key),
            "last_success": _when(now.canary_passed_when),
            "last_failure": _when(now.canary_failed_when),
            "failure": engine.canaries.failure or None,
        },
        "token": {
            "slow": now.slow,
            "calls": dict(counts.calls),
            "errors": dict(counts.errors),
            "last_fault": _fault_of(engine.alarm),
        },
        "requests": {"paths": requests.by_path(), "refused": requests.refused()},
        "local_keks": {
            "uses": now.local_uses,
            "cached": now.local_cached,
            "created": dict(counts.created),
        },
        "breaker": "open" if now.breaker_open else "closed",
        "pin": now.pin,
        "http": [
            {"address": str(each.address), "error": each.problem}
            for each in http.listeners
        ],
        "config": config_of(reload.rejected),
        "audit": {
            "to": audit.target or None,
            "refuses": audit.refuses,
            "written": audit.written,
            "lost": audit.lost,
            "error": audit.error or None,
        },
    }
