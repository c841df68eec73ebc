"""Hold the values that the metrics show at one scrape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hsm_kms.audit.report import AuditReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.token.counts import Counts


HEALTH: Final = ("starting", "ok", "degraded", "failed")
"""The states of health."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Hold the values that are read at each scrape.

    Times are in seconds since the Unix epoch, and None before the first event.

    Args:
        counts: Running totals of the token's side.
        health: One of `HEALTH`.
        health_since: When `health` became what it is.
        status_when: When the API server last asked for Status.
        key_id_hash: Hash of the key_id that Status announces; "" while there is none.
        key_states: State of each key held, by hash of its key_id.
        activations: When each key held that has an activation time becomes or became
            current, by hash of its key_id.
        unidentified: Number of keys on the token that could not be identified.
        same_names: Number of keys held whose CKA_LABEL and CKA_ID another key has, too.
        workers: Number of workers that serve.
        unkillable: Number of workers that cannot be killed.
        sessions: Number of sessions held.
        idle: Number of sessions that are not in use.
        waiting: Number of requests that wait for a session.
        canary_passed_when: When a canary last passed.
        canary_failed_when: When an inspection of the token last failed.
        slow: True if the latest canary passed late.
        health_key_usable: True unless the health key failed; None if there is none.
        breaker_open: True if requests fail without asking the token.
        pin: What is known about the PIN: "none", "absent", "untried", "proven",
            "rejected" or "corrupt".
        local_uses: Number of DEKs that the current local KEK has wrapped; 0 if there is
            none.
        local_cached: Number of local KEKs in memory.
        local_age: Seconds since the current local KEK was created; 0 if there is none.
        joined: Number of Decrypts that have joined the token call of another one.
        kek_wraps: Wraps by AES-GCM under a KEK that count on this node, by hash of its
            key_id.
        http_failures: Failed attempts to listen for HTTP, by kind of address.
        config_in_force: True if the configuration file is in force as it is now.
        reloads: Changed configuration files, by "applied" and "rejected".
        state_writable: True if the last attempt to write the state directory succeeded.
        audit: How the audit stream is.
    """

    counts: Counts
    health: str
    health_since: float | None = None
    status_when: float | None = None
    key_id_hash: str
    key_states: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, float] = field(default_factory=dict)
    unidentified: int = 0
    same_names: int = 0
    workers: int
    unkillable: int = 0
    sessions: int
    idle: int
    waiting: int
    canary_passed_when: float | None = None
    canary_failed_when: float | None = None
    slow: bool = False
    health_key_usable: bool | None = None
    breaker_open: bool
    pin: str
    local_uses: int = 0
    local_cached: int = 0
    local_age: float = 0.0
    joined: int = 0
    kek_wraps: Mapping[str, int] = field(default_factory=dict)
    http_failures: Mapping[str, int] = field(default_factory=dict)
    config_in_force: bool = True
    reloads: Mapping[str, int] = field(default_factory=dict)
    state_writable: bool = True
    audit: AuditReport = field(default_factory=AuditReport)
