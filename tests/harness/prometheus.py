"""A real Prometheus: installed, or unpacked by packages-prometheus.sh."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import pytest
import yaml

from hsm_kms import clock
from tests.harness.kept import kept
from tests.harness.manifests import MANIFESTS
from tests.harness.plugin import get
from tests.harness.wait import patient, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

JOB = "hsm-kms"
RULES = MANIFESTS / "monitoring" / "rules.yaml"
_LISTENING = re.compile(r"Listening on.*address=127\.0\.0\.1:(\d+)")


class Series(NamedTuple):
    """One series of an answer: its labels, and (time, value) pairs in seconds."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


class Prometheus(NamedTuple):
    """A running Prometheus.

    Attributes:
        port: Its port.
    """

    port: int

    def get(self, path: str) -> tuple[int, str]:
        """Return status code and body of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, patient(30))
        return get(connection, path)

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of the API."""
        code, text = self.get(f"/api/v1/{path}?{urlencode(parameters)}")
        assert 200 == code, text
        return json.loads(text)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return what an expression has now."""
        result: list[Any] = self.ask("query", query=expression)["result"]
        return result

    def over(self, expression: str, start: float, end: float) -> list[Series]:
        """Return what an expression had in each second of a span of time.

        Args:
            expression: The expression.
            start: The first second, since the Unix epoch.
            end: The last second.
        """
        span = {"start": f"{start:.0f}", "end": f"{end:.0f}", "step": "1"}
        answer = self.ask("query_range", query=expression, **span)
        return [
            Series(
                each["metric"],
                [(float(at), float(value)) for at, value in each["values"]],
            )
            for each in answer["result"]
        ]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {
            each["labels"]["alertname"] for each in alerts if each["state"] == "firing"
        }

    def wait(self, *names: str) -> None:
        """Wait until exactly these alerts fire."""
        wait_for(lambda: self.firing() == set(names))

    def wait_scraped(self, count: int = 2) -> None:
        """Wait until every target has been scraped some times more.

        Args:
            count: How often.
        """
        began = clock.now()
        newer = f"min(timestamp(up)) > {began}"
        wait_for(lambda: self.query(newer))
        enough = f"min(count_over_time(up[{{}}s])) >= {count}"
        wait_for(lambda: self.query(enough.format(int(clock.now() - began) or 1)))


def tool(name: str) -> str:
    """Return the path of `promtool` or `prometheus`; skip the test if there is none."""
    unpacked = kept("prometheus") / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.is_file() else None)
    if found is None:
        pytest.skip(f"{name} is missing; make test-alerts gets it")
    return found


@contextmanager
def scraping(
    directory: Path, jobs: Mapping[str, Mapping[str, int]]
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ports once a second, and wait for its first scrape.

    It has the rules of manifests/monitoring, evaluates them often, and does not wait
    for the time that a fault must last.

    Args:
        directory: For its files.
        jobs: For each job, the port of each instance.
    """
    file = _configure(directory, jobs)
    log = directory / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=out,
            stderr=out,
        )
    try:
        started = Prometheus(_port(process, log))
        wait_for(lambda: started.get("/-/ready")[0] == 200)
        wait_for(lambda: started.query("hsm_kms_build_info"))
        yield started
    finally:
        process.terminate()
        process.wait()


def _configure(directory: Path, jobs: Mapping[str, Mapping[str, int]]) -> Path:
    """Write the configuration; return its path."""
    (directory / "rules.yaml").write_text(yaml.safe_dump(_impatient_rules()))
    content = {
        # A page is made at most once a second.
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
                    for name, port in instances.items()
                ],
            }
            for job, instances in jobs.items()
        ],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _impatient_rules() -> Any:
    """Return the rules without their waiting times, evaluated often."""
    content = yaml.safe_load(RULES.read_text())
    for group in content["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule["for"] = "0s"
    return content


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until Prometheus listens; return its port."""
    wait_for(lambda: _LISTENING.search(log.read_text()) or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    found = _LISTENING.search(log.read_text())
    assert found is not None
    return int(found[1])
