"""The Grafana dashboard of manifests/monitoring: its panels and their queries."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from tests.harness.manifests import MANIFESTS

FILE: Final = MANIFESTS / "monitoring" / "dashboard.json"
# What Grafana puts for them: all values of a variable, and four scrapes of a second.
VARIABLES: Final = {
    "$job": "(hsm-kms)",
    "$instance": "(cp-1|cp-2)",
    "$__rate_interval": "4s",
}
_LEGEND: Final = re.compile(r"\{\{(\w+)\}\}")


class Query(NamedTuple):
    """One query of a panel.

    Attributes:
        panel: Title of the panel.
        text: The query as it is in the file.
        legend: Template of the name of a series.
    """

    panel: str
    text: str
    legend: str

    @property
    def expression(self) -> str:
        """Return the query with the variables replaced, as Grafana sends it."""
        text = self.text
        for name, value in VARIABLES.items():
            text = text.replace(name, value)
        return text

    @property
    def labels(self) -> list[str]:
        """Return the labels that the legend shows."""
        return _LEGEND.findall(self.legend)

    def name(self, labels: dict[str, str]) -> str:
        """Return the name of a series, as the legend shows it."""
        return _LEGEND.sub(lambda found: labels.get(found[1], ""), self.legend)


def read() -> Any:
    """Return the dashboard."""
    return json.loads(FILE.read_text())


def panels() -> list[Any]:
    """Return the panels, without the rows between them."""
    return [each for each in read()["panels"] if each["type"] != "row"]


def queries() -> list[Query]:
    """Return the queries of all panels."""
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]
