"""A real Prometheus scrapes a server in faults: its alerts fire, and they clear.

The rules are those of manifests/monitoring, without the time that a fault must last.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.harness.plugin import get
from tests.harness.prometheus import tool
from tests.harness.wait import patient, wait_for
from tests.system.faults.observed import QUICK, ObservedServer

RULES = Path(__file__).parents[3] / "manifests" / "monitoring" / "rules.yaml"


class Prometheus(NamedTuple):
    """A running Prometheus, and the server that it scrapes."""

    port: int
    rig: ObservedServer

    def get(self, path: str) -> tuple[int, str]:
        """Return status code and body of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, patient(30))
        return get(connection, path)

    def ask(self, path: str) -> dict:
        """Return the data of an answer of the API."""
        code, text = self.get(f"/api/v1/{path}")
        assert 200 == code, text
        return json.loads(text)["data"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {
            each["labels"]["alertname"] for each in alerts if each["state"] == "firing"
        }

    def wait(self, *names: str) -> None:
        """Wait until exactly these alerts fire."""
        wait_for(lambda: self.firing() == set(names))


def rules() -> dict:
    """Return the rules without their waiting times, evaluated often."""
    content = yaml.safe_load(RULES.read_text())
    for group in content["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule["for"] = "0s"
    return content


def configuration(port: int, directory: Path) -> Path:
    """Write the configuration of a Prometheus that scrapes a port; return its path."""
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules()))
    scrape = {
        "job_name": "hsm-kms",
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }
    content = {
        # A page is made at most once a second.
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def prometheus(make_rig, directory):
    """Provide a Prometheus that scrapes a healthy server on the shim."""
    program = tool("prometheus")
    rig = make_rig(token=QUICK, http={"listen": "127.0.0.1:0"})
    rig.start()
    rig.well()
    rig.plugin.status()
    file = configuration(rig.plugin.http_port(), directory)
    log = directory / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=out,
            stderr=out,
        )
    try:
        started = Prometheus(listening(process, log), rig)
        wait_for(lambda: started.get("/-/ready")[0] == 200)
        wait_for(lambda: started.ask("query?query=hsm_kms_build_info")["result"])
        yield started
    finally:
        process.terminate()
        process.wait()


def listening(process: subprocess.Popen, log: Path) -> int:
    """Wait until Prometheus listens; return its port."""
    pattern = re.compile(r"Listening on.*address=127\.0\.0\.1:(\d+)")
    wait_for(lambda: pattern.search(log.read_text()) or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return int(pattern.search(log.read_text())[1])


@pytest.mark.slow
def test_faults(prometheus):
    """Nothing fires on a healthy server; each fault has its alert, until it is over."""
    plugin, rig = prometheus.rig.plugin, prometheus.rig
    prometheus.wait()

    plugin.config["scope"] = 7
    plugin.write_config()
    prometheus.wait("HsmKmsConfigNotInForce")
    plugin.config["scope"] = ""
    plugin.write_config()
    prometheus.wait()

    rig.hsm.take_away()
    wait_for(lambda: "HsmKmsFailed" in prometheus.firing())
    rig.hsm.put_back()
    wait_for(lambda: "HsmKmsFailed" not in prometheus.firing())

    assert plugin.process is not None
    plugin.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: "HsmKmsDown" in prometheus.firing())
    plugin.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "HsmKmsDown" not in prometheus.firing())
