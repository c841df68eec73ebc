"""Test that the dashboard fits any Grafana, and names metrics that there are."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import yaml

from tests.harness.dashboard import panels, queries, read
from tests.harness.manifests import MANIFESTS

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
METRICS = dict(re.findall(r"^\| `(hsm_kms_\w+)` \|(.*)$", PAGE, re.MULTILINE))
SELECTOR = re.compile(r"(hsm_kms_\w+)(\{[^}]*\})?")
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


def test_metrics_are_documented():
    """Queries name only metrics of docs/metrics.md, with their labels and values."""
    for query in queries():
        for name, labels in SELECTOR.findall(query.text):
            row = METRICS[name.removesuffix("_bucket")]
            pairs = re.findall(r'(\w+)!?=~?"([^"]*)"', labels)
            for label, value in pairs:
                if label not in {"job", "instance"}:
                    assert f"`{label}`" in row, query
                    assert label in {"code", "method"} or value in row, query


def test_every_metric_is_shown():
    """A metric of docs/metrics.md that no panel shows is an omission."""
    shown = {
        name.removesuffix("_bucket")
        for query in queries()
        for name, _ in SELECTOR.findall(query.text)
    }

    assert set(METRICS) == shown


def test_data_source_is_a_variable():
    """Nothing names a data source or a dashboard of one Grafana."""
    board = read()
    source, *others = board["templating"]["list"]

    assert "datasource" == source["name"] == source["type"]
    assert {"job", "instance"} == {each["name"] for each in others}
    assert not {"uid", "id", "__inputs"} & set(board)
    targets = [target for panel in panels() for target in panel["targets"]]
    for each in (*others, *panels(), *targets):
        assert DATA_SOURCE == each["datasource"]


def test_variables_are_obeyed():
    """Each query of the nodes is of the jobs and nodes that are chosen."""
    own = [each for each in queries() if "apiserver_" not in each.text]
    chosen = 'job=~"$job",instance=~"$instance"'

    alerts = [each.panel for each in own if chosen not in each.text]
    assert ["Alerts"] == alerts


def test_places():
    """Panels have numbers of their own, lie in the grid, and do not overlap."""
    every = read()["panels"]
    cells = itertools.chain.from_iterable(map(cells_of, every))

    assert len(every) == len({each["id"] for each in every})
    assert all(each["gridPos"]["x"] + each["gridPos"]["w"] <= WIDTH for each in every)
    assert len(found := list(cells)) == len(set(found))


def cells_of(panel):
    """Return the cells of the grid that a panel covers."""
    x, y, w, h = (panel["gridPos"][each] for each in "xywh")
    return itertools.product(range(x, x + w), range(y, y + h))


def test_words():
    """Each panel has a title of its own, and a description in sentences."""
    titles = [each["title"] for each in panels()]

    assert sorted(set(titles)) == sorted(titles)
    assert [] == [each["title"] for each in panels() if each["description"][-1] != "."]


def test_config_map():
    """Kustomize makes a ConfigMap of the dashboard, in the namespace of the rules."""
    file = MANIFESTS / "monitoring" / "kustomization.yaml"
    [made] = yaml.safe_load(file.read_text())["configMapGenerator"]
    rules = yaml.safe_load((file.parent / "prometheusrule.yaml").read_text())

    assert ["dashboard.json"] == made["files"]
    assert rules["metadata"]["namespace"] == made["namespace"]
