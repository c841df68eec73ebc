"""Every query of the Grafana dashboard has data in a run with faults.

HSM_KMS_PICTURE names a PNG file for a picture of that run.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.harness.dashboard import queries
from tests.system.alerts.faulted_run import faulted_run

PICTURE = os.environ.get("HSM_KMS_PICTURE")


@pytest.fixture
def run(make_rig, directory):
    """Provide a run with every fault, which is over."""
    with faulted_run(make_rig, directory) as made:
        yield made


def has_data(query, series) -> bool:
    """Return True if a series has a number, and each has the labels of its legend."""
    numbers = any(math.isfinite(value) for one in series for _, value in one.values)
    return numbers and all(set(query.labels) <= set(one.labels) for one in series)


def last(asked, panel: str) -> dict[str, float]:
    """Return the last value of each instance in a panel."""
    [series] = [got for query, got in asked.items() if query.panel == panel]
    return {one.labels["instance"]: one.values[-1][1] for one in series}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_queries(run):
    """Every query has data; nodes are told from API servers that use another key."""
    asked = {
        query: run.prometheus.over(query.expression, run.began, run.ended)
        for query in queries()
    }
    if PICTURE:
        from tests.system.alerts.picture import draw  # noqa: PLC0415 - needs matplotlib

        draw(run, asked, Path(PICTURE))

    assert [] == [query for query, got in asked.items() if not has_data(query, got)]
    assert {"cp-1": 0, "cp-2": 0} == last(asked, "Health")
    assert {"api-1": 2, "api-2": 0} == last(asked, "Current key of each API server")
    assert {"api-2"} == set(last(asked, "Use by API servers of other keys"))
    assert {"api-1"} == set(last(asked, "Use by API servers of the current key"))
