"""Counts of requests, and the metrics that a scrape gets."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hsm_kms import clock, errors
from hsm_kms.api.codes import INTERNAL, REFUSALS
from hsm_kms.audit.report import AuditReport
from hsm_kms.http.metrics import Metrics
from hsm_kms.http.requests import CODES, RequestCounts
from hsm_kms.http.values import Snapshot
from hsm_kms.log import key_id_hash
from hsm_kms.token.counts import Counts
from hsm_kms.token.ends import End
from tests.harness.wait import until
from tests.unit.api.api_service import KEY_ID, refused, serve

IDLE = Snapshot(
    counts=Counts(),
    health="ok",
    key_id_hash="",
    workers=2,
    sessions=8,
    idle=8,
    waiting=0,
    breaker_open=False,
    pin="proven",
)


def samples(metrics: Metrics) -> dict[str, float]:
    """Return every sample, by name and labels as they are written."""
    lines = metrics.render().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def families(metrics: Metrics) -> dict[str, str]:
    """Return the types by name, as a Prometheus server reads the page."""
    parsed = text_string_to_metric_families(metrics.render().decode())
    return {each.name: each.type for each in parsed}


def of(**fields) -> dict[str, float]:
    """Return the samples of present values."""
    return samples(shown(RequestCounts(), **fields))


def shown(requests: RequestCounts, **fields) -> Metrics:
    """Return the metrics of some requests and present values."""
    return Metrics(requests, lambda: replace(IDLE, **fields))


async def test_requests():
    """Each answer counts once by code, and each DEK of an answer that is OK by path."""
    requests = RequestCounts()
    metrics = shown(requests)
    async with serve(observe=requests.add) as service:
        await service.call("v2.Encrypt")
        service.wrapper.path = "local"
        for _ in range(3):
            await service.call("v1.Encrypt")
        service.wrapper.path = "local-uncached"
        await service.call("v1.Decrypt")
        await service.call("v1.Version")
        service.wrapper.error = errors.TokenError("C_Decrypt failed")
        await refused(service.call("v1.Decrypt"))
    seen = samples(metrics)

    assert {
        'hsm_kms_requests_total{code="OK",method="v2.Encrypt"}': 1,
        'hsm_kms_requests_total{code="OK",method="v1.Encrypt"}': 3,
        'hsm_kms_requests_total{code="OK",method="v1.Decrypt"}': 1,
        'hsm_kms_requests_total{code="UNAVAILABLE",method="v1.Decrypt"}': 1,
        'hsm_kms_requests_total{code="OK",method="v1.Version"}': 1,
        'hsm_kms_dek_operations_total{method="v2.Encrypt",path="token"}': 1,
        'hsm_kms_dek_operations_total{method="v1.Encrypt",path="local"}': 3,
        'hsm_kms_dek_operations_total{method="v1.Decrypt",path="local-uncached"}': 1,
    } == {
        name: value
        for name, value in seen.items()
        if name.startswith(("hsm_kms_requests_total", "hsm_kms_dek_operations_total"))
    }
    assert 2 == seen['hsm_kms_request_duration_seconds_count{method="v1.Decrypt"}']


def test_codes_from_the_start():
    """The counts of an API that is served are there before its first request."""
    seen = samples(shown(RequestCounts("v2")))

    assert {
        f'hsm_kms_requests_total{{code="{code}",method="{method}"}}': 0
        for code in CODES
        for method in ("v2.Status", "v2.Encrypt", "v2.Decrypt")
    } == {name: n for name, n in seen.items() if name.startswith("hsm_kms_requests_")}
    assert set(CODES) == {
        "OK",
        "CANCELLED",
        INTERNAL.code.name,
        *(each.code.name for each in REFUSALS.values()),
    }


def test_results_from_the_start():
    """Each end of a worker, result of a login, and the like is there before it is."""
    seen = of()

    assert {0} == {
        seen[f'hsm_kms_{name}_total{{{label}="{value}"}}']
        for name, label, values in (
            ("worker_ends", "reason", End),
            ("logins", "result", ("ok", "rejected", "failed")),
            ("local_keks_created", "result", ("ok", "failed")),
            ("config_reloads", "result", ("applied", "rejected")),
        )
        for value in values
    }


async def test_a_client_that_gave_up():
    """A request whose client gave up counts as CANCELLED."""
    requests = RequestCounts()
    metrics = shown(requests)
    async with serve(observe=requests.add) as service:
        service.wrapper.stall = asyncio.Event()
        call = service.call("v2.Encrypt")
        await until(lambda: service.wrapper.asked)
        call.cancel()
        name = 'hsm_kms_requests_total{code="CANCELLED",method="v2.Encrypt"}'
        await until(lambda: samples(metrics).get(name) == 1)

    operations = "hsm_kms_dek_operations_total"
    assert not any(name.startswith(operations) for name in samples(metrics))


def test_durations():
    """Buckets are cumulative over all codes and paths, and a bound is inclusive."""
    requests = RequestCounts()
    for seconds, code, path in (
        (0.0001, "OK", "local"),
        (0.0005, "OK", "token"),
        (0.0006, "OK", "token"),
        (2.5, "UNAVAILABLE", ""),
        (60.0, "CANCELLED", ""),
    ):
        requests.add("v1.Encrypt", code, seconds, path, KEY_ID)
    seen = samples(shown(requests))
    name = "hsm_kms_request_duration_seconds"

    assert {"0.0005": 2, "0.001": 3, "1.0": 3, "2.5": 4, "+Inf": 5} == {
        bound: seen[f'{name}_bucket{{le="{bound}",method="v1.Encrypt"}}']
        for bound in ("0.0005", "0.001", "1.0", "2.5", "+Inf")
    }
    assert 5 == seen[f'{name}_count{{method="v1.Encrypt"}}']
    assert pytest.approx(62.5012) == seen[f'{name}_sum{{method="v1.Encrypt"}}']


def test_decrypts_of_a_key():
    """Only a Decrypt that was answered OK counts for its key."""
    requests, began = RequestCounts(), clock.now()
    for method, code in (
        ("v1.Decrypt", "OK"),
        ("v2.Decrypt", "OK"),
        ("v2.Encrypt", "OK"),
        ("v2.Decrypt", "INVALID_ARGUMENT"),
    ):
        requests.add(method, code, 0.1, "", KEY_ID)
    requests.add("v2.Decrypt", "FAILED_PRECONDITION", 0.1, "", "a hostile key_id")
    seen = samples(shown(requests))
    label = f'{{key_id_hash="{key_id_hash(KEY_ID)}"}}'
    last = f"hsm_kms_key_last_decrypt_timestamp_seconds{label}"

    assert {f"hsm_kms_key_decrypts_total{label}": 2, last: seen[last]} == {
        name: value
        for name, value in seen.items()
        if "decrypt" in name and "{key" in name
    }
    assert began <= seen[last] <= clock.now()


def test_keys():
    """Each key held has a sample with its state, and all states are counted."""
    seen = of(
        key_states={
            "sha256:1": "current",
            "sha256:2": "retired",
            "sha256:3": "retired",
        },
        activations={"sha256:1": 1_800_000_000.0},
    )

    assert 1 == seen['hsm_kms_key_info{key_id_hash="sha256:1",state="current"}']
    assert {"current": 1, "retired": 2} == {
        name.split('"')[1]: value
        for name, value in seen.items()
        if name.startswith("hsm_kms_keys{") and value
    }
    activation = 'hsm_kms_key_activation_timestamp_seconds{key_id_hash="sha256:1"}'
    assert 1_800_000_000 == seen[activation]


def test_times():
    """A time is absent until its event has happened."""
    names = {
        "status_when": "hsm_kms_last_status_timestamp_seconds",
        "canary_passed_when": "hsm_kms_canary_last_success_timestamp_seconds",
        "canary_failed_when": "hsm_kms_canary_last_failure_timestamp_seconds",
    }
    assert not set(names.values()) & set(of())
    for field, name in names.items():
        assert 1234.5 == of(**{field: 1234.5})[name]


@pytest.mark.parametrize("state", ["starting", "ok", "degraded", "failed"])
def test_health(state):
    """The present state of health is 1, and all others are 0."""
    seen = of(health=state)

    assert {"starting": 0, "ok": 0, "degraded": 0, "failed": 0} | {state: 1} == {
        name.split('"')[1]: value
        for name, value in seen.items()
        if name.startswith("hsm_kms_health{")
    }


@pytest.mark.parametrize("state", ["none", "absent", "proven", "rejected"])
def test_pin(state):
    """What is known about the PIN is 1, and all other states are 0."""
    seen = of(pin=state)
    states = ("none", "absent", "untried", "proven", "rejected", "corrupt")

    assert [float(state == each) for each in states] == [
        seen[f'hsm_kms_pin{{state="{each}"}}'] for each in states
    ]


def test_local_keks():
    """Uses of the current local KEK, cached and generated local KEKs are counted."""
    seen = of(
        local_uses=17,
        local_cached=3,
        local_age=60.5,
        counts=Counts(created=Counter(ok=4, failed=1)),
    )

    assert 17 == seen["hsm_kms_local_kek_uses"]
    assert 60.5 == seen["hsm_kms_local_kek_age_seconds"]
    assert 3 == seen["hsm_kms_local_keks_cached"]
    assert 4 == seen['hsm_kms_local_keks_created_total{result="ok"}']
    assert 1 == seen['hsm_kms_local_keks_created_total{result="failed"}']


def test_nonce_budget():
    """The wraps under each KEK are shown with the two limits."""
    name = key_id_hash(KEY_ID)
    seen = of(kek_wraps={name: 12345})

    assert 12345 == seen[f'hsm_kms_kek_wraps{{key_id_hash="{name}"}}']
    assert 2**28 == seen['hsm_kms_kek_wraps_limit{level="warning"}']
    assert 2**29 == seen['hsm_kms_kek_wraps_limit{level="stop"}']


def test_audit():
    """Records are counted, and a loss under way is 1; nothing if the audit is off."""
    audit = AuditReport(enabled=True, written=7, lost=2, waiting=3, error="full")
    seen = of(audit=audit)

    assert 7 == seen['hsm_kms_audit_records_total{result="written"}']
    assert 2 == seen['hsm_kms_audit_records_total{result="lost"}']
    assert 3 == seen["hsm_kms_audit_records_waiting"]
    assert 1 == seen["hsm_kms_audit_failing"]
    assert not [name for name in of() if "audit" in name]


def test_documented():
    """docs/metrics.md lists each metric with its type, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(hsm_kms_\w+)` \| (\w+) \|", text, re.MULTILINE)
    requests = RequestCounts()
    requests.add("v1.Decrypt", "OK", 0.1, "local", KEY_ID)
    times = dict.fromkeys(
        ("health_since", "status_when", "canary_passed_when", "canary_failed_when"), 1.0
    )
    audit = AuditReport(enabled=True)
    more = {"health_key_usable": False, "audit": audit}
    metrics = shown(requests, key_id_hash="sha256:0", **more, **times)
    served = {
        f"{name}_total" if kind == "counter" else name: kind
        for name, kind in families(metrics).items()
        if name.startswith("hsm_kms_")
    }

    assert served == dict(rows)
