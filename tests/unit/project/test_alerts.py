"""Test that alerts, runbooks, metrics and both forms of the rules agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "manifests" / "monitoring"
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
PARTS = ("**Meaning.**", "**Look at.**", "**Do.**", "**Wake somebody.**")


def sections():
    """Return the text of each runbook by its heading."""
    parts = re.split(r"^## (HsmKms\w+)$", RUNBOOKS, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_operator_form():
    """The rules for the Prometheus operator are those for a plain Prometheus."""
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())

    assert RULES == rule["spec"]


def test_one_runbook_each():
    """There is a runbook for each alert, in the same order, and no other."""
    assert list(ALERTS) == list(sections())


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_runbook(part):
    """Each runbook tells the meaning, what to look at and do, and whom to wake."""
    assert [] == [name for name, text in sections().items() if text.count(part) != 1]


def test_labels_and_links():
    """Each alert has a severity and a sentence, and links its runbook."""
    for name, alert in ALERTS.items():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert f"docs/runbooks.md#{name.lower()}" == alert["annotations"]["runbook"]
        assert alert["annotations"]["summary"].endswith(".")


def test_metrics_are_documented():
    """The rules name only metrics of docs/metrics.md, with values that they have."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(hsm_kms_\w+)` \|(.*)$", page, re.MULTILINE))
    used = set()
    for alert in ALERTS.values():
        for name, labels in re.findall(r"(hsm_kms_\w+)(\{[^}]*\})?", alert["expr"]):
            row = rows[name.removesuffix("_bucket")]
            used.add(name)
            for label, op, value in re.findall(r'(\w+)(!?=~?)"([^"]*)"', labels or ""):
                assert f"`{label}`" in row
                if "*" not in value and label != "code":
                    assert all(each in row for each in value.split("|")), (op, value)

    assert len(used) > 20
