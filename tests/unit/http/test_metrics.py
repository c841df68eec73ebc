"""Counts of requests, and the metrics that a scrape gets."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hsm_kms import errors
from hsm_kms.http.metrics import Metrics, Snapshot
from hsm_kms.log import key_id_hash
from tests.harness.wait import until
from tests.unit.api.api_service import KEY_ID, refused, serve

IDLE = Snapshot(
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
    return samples(Metrics(lambda: replace(IDLE, **fields)))


async def test_requests():
    """Each answer counts once by code, and each DEK of an answer that is OK by path."""
    metrics = Metrics(lambda: IDLE)
    async with serve(observe=metrics.request) as service:
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


async def test_a_client_that_gave_up():
    """A request whose client gave up counts as CANCELLED."""
    metrics = Metrics(lambda: IDLE)
    async with serve(observe=metrics.request) as service:
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
    metrics = Metrics(lambda: IDLE)
    for seconds, code, path in (
        (0.0001, "OK", "local"),
        (0.0005, "OK", "token"),
        (0.0006, "OK", "token"),
        (2.5, "UNAVAILABLE", ""),
        (60.0, "CANCELLED", ""),
    ):
        metrics.request("v1.Encrypt", code, seconds, path)
    seen = samples(metrics)
    name = "hsm_kms_request_duration_seconds"

    assert {"0.0005": 2, "0.001": 3, "1.0": 3, "2.5": 4, "+Inf": 5} == {
        bound: seen[f'{name}_bucket{{le="{bound}",method="v1.Encrypt"}}']
        for bound in ("0.0005", "0.001", "1.0", "2.5", "+Inf")
    }
    assert 5 == seen[f'{name}_count{{method="v1.Encrypt"}}']
    assert pytest.approx(62.5012) == seen[f'{name}_sum{{method="v1.Encrypt"}}']


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
    seen = of(local_uses=17, local_cached=3, local_created={"ok": 4, "failed": 1})

    assert 17 == seen["hsm_kms_local_kek_uses"]
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


def test_documented():
    """docs/metrics.md lists each metric with its type, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(hsm_kms_\w+)` \| (\w+) \|", text, re.MULTILINE)
    metrics = Metrics(lambda: replace(IDLE, key_id_hash="sha256:0"))
    metrics.request("v1.Encrypt", "OK", 0.1, "local")
    served = {
        f"{name}_total" if kind == "counter" else name: kind
        for name, kind in families(metrics).items()
        if name.startswith("hsm_kms_")
    }

    assert served == dict(rows)
