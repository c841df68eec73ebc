"""Each alert fires on what it is for, and not before: unit tests run by promtool.

One row for each alert: the series that cause it, the last minute in which it must not
fire yet, and a minute in which it must.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from tests.harness.prometheus import RULES, tool

if TYPE_CHECKING:
    from pathlib import Path

ON = 'job="hsm-kms",instance="a"'
LATENCY = "apiserver_envelope_encryption_kms_operations_latency_seconds_count"
RENAMED = "apiserver_kms_operations_latency_seconds_count"
INVALID = "apiserver_envelope_encryption_invalid_key_id_from_status_total"
BUCKET = f'hsm_kms_request_duration_seconds_bucket{{{ON},method="v2.Encrypt",le='
CURRENT = 'hsm_kms_current_key_info{job="hsm-kms",'


class Row(NamedTuple):
    """One case: series with their values by interval, and when to look.

    Args:
        series: Values by series.
        quiet: Interval in which the alert must not fire yet.
        firing: Interval in which it must.
        unit: The interval: "m" or "h".
    """

    series: dict[str, str]
    quiet: int
    firing: int
    unit: str = "m"


def one(name: str, values: str, quiet: int, firing: int, **labels: str) -> Row:
    """Return a row with one series of one node."""
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return Row({f"{name}{{{ON}{more}}}": values}, quiet, firing)


KEY = f'{{{ON},key_id_hash="sha256:1"}}'
INFO = f'hsm_kms_key_info{{{ON},key_id_hash="sha256:1",state='
ACTIVATION = f"hsm_kms_key_activation_timestamp_seconds{KEY}"

ROWS = {
    "HsmKmsDown": one("up", "1x5 0x20", 6, 9),
    "HsmKmsFailed": one("hsm_kms_health", "0x5 1x20", 6, 8, state="failed"),
    "HsmKmsDegraded": one("hsm_kms_health", "0x5 1x20", 9, 12, state="degraded"),
    "HsmKmsStarting": one("hsm_kms_health", "1x30", 9, 11, state="starting"),
    # The clock of promtool begins at 0.
    "HsmKmsNotAsked": one("hsm_kms_last_status_timestamp_seconds", "60x30", 9, 12),
    "HsmKmsCanaryOld": one(
        "hsm_kms_canary_last_success_timestamp_seconds", "60x30", 6, 8
    ),
    "HsmKmsTokenSlow": one("hsm_kms_token_slow", "0x5 1x20", 9, 12),
    "HsmKmsRequestsSlow": Row(
        {
            f'{BUCKET}"1.0"}}': "0x60",
            f'{BUCKET}"2.5"}}': "0+60x60",
            f'{BUCKET}"+Inf"}}': "0+60x60",
        },
        5,
        9,
    ),
    "HsmKmsPinRejected": one("hsm_kms_pin", "0x5 1x20", 5, 7, state="rejected"),
    "HsmKmsPinNotTried": one("hsm_kms_pin", "0x5 1x20", 9, 12, state="absent"),
    "HsmKmsNodesDisagree": Row(
        {
            f'{CURRENT}instance="a",key_id_hash="1"}}': "1x40",
            f'{CURRENT}instance="b",key_id_hash="1"}}': "1x9 _x40",
            f'{CURRENT}instance="b",key_id_hash="2"}}': "_x9 1x40",
        },
        18,
        21,
    ),
    "HsmKmsPendingKeyOverdue": Row(
        {ACTIVATION: "60x40", f'{INFO}"pending"}}': "1x40"}, 14, 18
    ),
    "HsmKmsKeyOld": Row(
        {ACTIVATION: "0x2200", f'{INFO}"current"}}': "1x2200"},
        90 * 24 + 1,
        90 * 24 + 3,
        "h",
    ),
    "HsmKmsForeignKey": one("hsm_kms_keys", "0x5 1x20", 9, 12, state="foreign"),
    "HsmKmsKeyUnidentified": one("hsm_kms_keys_unidentified", "0x5 2x20", 9, 12),
    "HsmKmsKeyRefused": one("hsm_kms_keys", "0x5 1x20", 9, 12, state="refused"),
    "HsmKmsNonceBudget": Row(
        {
            f"hsm_kms_kek_wraps{KEY}": "268435456x5 268435457x20",
            f'hsm_kms_kek_wraps_limit{{{ON},level="warning"}}': "268435456x30",
            f'hsm_kms_kek_wraps_limit{{{ON},level="stop"}}': "536870912x30",
        },
        9,
        12,
    ),
    "HsmKmsLocalKekOverdue": Row(
        {
            f"hsm_kms_local_kek_age_seconds{{{ON}}}": "0+3600x200",
            f"hsm_kms_local_kek_uses{{{ON}}}": "1x200",
        },
        8 * 24 + 1,
        8 * 24 + 3,
        "h",
    ),
    "HsmKmsWorkersEnd": one(
        "hsm_kms_worker_ends_total", "0x5 1+1x20", 8, 12, reason="lost"
    ),
    "HsmKmsWorkerUnkillable": one("hsm_kms_workers_unkillable", "0x5 1x20", 5, 8),
    "HsmKmsBreakerFlapping": one("hsm_kms_breaker_openings_total", "0x5 1+1x20", 8, 12),
    "HsmKmsSessionsExhausted": one(
        "hsm_kms_requests_total",
        "0x5 1x20",
        5,
        7,
        code="RESOURCE_EXHAUSTED",
        method="v2.Encrypt",
    ),
    "HsmKmsConfigNotInForce": one("hsm_kms_config_in_force", "1x5 0x30", 14, 17),
    "HsmKmsStateDirNotWritable": one("hsm_kms_state_dir_writable", "1x5 0x20", 9, 12),
    "HsmKmsHealthKeyUnusable": one("hsm_kms_health_key_usable", "1x5 0x30", 14, 17),
    "HsmKmsAuditFailing": one("hsm_kms_audit_failing", "0x5 1x20", 5, 8),
    "HsmKmsProbesUnreachable": one(
        "hsm_kms_http_listen_failures_total", "0x5 1+12x30", 14, 18, listener="tcp"
    ),
    "HsmKmsApiServerErrors": one(
        LATENCY, "0x5 1+1x20", 9, 12, grpc_status_code="UNAVAILABLE", provider_name="p"
    ),
    "HsmKmsApiServerKeyId": one(INVALID, "0x5 1x20", 5, 7, provider_name="p"),
}

# Series of a healthy server, on which nothing fires.
HEALTHY = {
    f"up{{{ON}}}": "1x60",
    f'hsm_kms_health{{{ON},state="ok"}}': "1x60",
    f'hsm_kms_health{{{ON},state="failed"}}': "0x60",
    f"hsm_kms_last_status_timestamp_seconds{{{ON}}}": "0+60x60",
    f"hsm_kms_canary_last_success_timestamp_seconds{{{ON}}}": "0+60x60",
    f'hsm_kms_pin{{{ON},state="proven"}}': "1x60",
    f'hsm_kms_pin{{{ON},state="rejected"}}': "0x60",
    f'hsm_kms_worker_ends_total{{{ON},reason="recycled"}}': "0+1x60",
    f'hsm_kms_requests_total{{{ON},code="OK"}}': "0+60x60",
    f"hsm_kms_config_in_force{{{ON}}}": "1x60",
    f"hsm_kms_state_dir_writable{{{ON}}}": "1x60",
    f"hsm_kms_audit_failing{{{ON}}}": "0x60",
    f'hsm_kms_audit_records_total{{{ON},result="lost"}}': "0x60",
    f'{BUCKET}"0.1"}}': "0+60x60",
    f'{BUCKET}"+Inf"}}': "0+60x60",
    f'hsm_kms_current_key_info{{{ON},key_id_hash="1"}}': "1x60",
    f'{LATENCY}{{{ON},grpc_status_code="OK",provider_name="p"}}': "0+60x60",
    # The API server's metrics under another prefix, as when they are renamed.
    f'{RENAMED}{{{ON},grpc_status_code="OK"}}': "0+1x60",
}


def firing(at: str, count: int, alert: str | None = None) -> dict[str, object]:
    """Return a test that so many alerts fire at a time, of this name or of any."""
    name = f'alertname="{alert}",' if alert else ""
    samples = [{"labels": "{}", "value": count}] if count else []
    return {
        "expr": f'count(ALERTS{{{name}alertstate="firing"}})',
        "eval_time": at,
        "exp_samples": samples,
    }


def case(
    series: dict[str, str], *tests: dict[str, object], interval: str = "1m"
) -> dict[str, object]:
    """Return one test group of promtool."""
    return {
        "interval": interval,
        "input_series": [{"series": k, "values": v} for k, v in series.items()],
        "promql_expr_test": list(tests),
    }


def promtool(directory: Path, cases: list[dict[str, object]], every: str = "1m"):
    """Run promtool on test groups; raise its output if a test fails."""
    content = {"rule_files": [str(RULES)], "evaluation_interval": every, "tests": cases}
    file = directory / "tests.yaml"
    file.write_text(yaml.safe_dump(content))
    result = subprocess.run(
        [tool("promtool"), "test", "rules", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == result.returncode, result.stdout + result.stderr


def test_every_alert_has_a_row():
    """No alert is left out."""
    content = yaml.safe_load(RULES.read_text())

    assert [rule["alert"] for rule in content["groups"][0]["rules"]] == list(ROWS)


@pytest.mark.parametrize("unit", ["m", "h"])
def test_alerts(unit, tmp_path):
    """Each alert fires in time, and not before."""
    cases = [
        case(
            row.series,
            firing(f"{row.quiet}{unit}", 0, name),
            firing(f"{row.firing}{unit}", 1, name),
            interval=f"1{unit}",
        )
        for name, row in ROWS.items()
        if row.unit == unit
    ]
    promtool(tmp_path, cases, every=f"1{unit}")


def test_healthy(tmp_path):
    """Nothing fires on a healthy server."""
    promtool(tmp_path, [case(HEALTHY, firing("20m", 0), firing("59m", 0))])


def test_renamed_metrics_of_the_api_server(tmp_path):
    """The alerts on kube-apiserver's metrics survive another prefix."""
    name = f'{RENAMED}{{{ON},grpc_status_code="UNAVAILABLE"}}'
    rows = case({name: "0x5 1+1x20"}, firing("12m", 1, "HsmKmsApiServerErrors"))
    promtool(tmp_path, [rows])


def test_rules_are_valid():
    """Promtool finds no fault in the rules, nor in the templates of their texts."""
    result = subprocess.run(
        [tool("promtool"), "check", "rules", RULES],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == result.returncode, result.stderr
