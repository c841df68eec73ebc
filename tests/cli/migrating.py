"""Run `hsm-kms migrate` with a kubectl that follows a scenario; see `kubectl_stub`."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.cli import kubectl_stub
from tests.harness import command_line
from tests.harness.command_line import HSM_KMS
from tests.harness.wait import patient

TEXT = "c2VjcmV0LXRleHQ="  # what is in every Secret here


class Command:
    """Run `hsm-kms migrate` by the command line that `command` makes."""

    timeout = patient(60)

    def run(self, *arguments, **options):
        return subprocess.run(
            self.command(*arguments, **options),
            check=False,
            capture_output=True,
            text=True,
            timeout=self.timeout,
        )

    def start(self, *arguments):
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


class Migrating(Command):
    """Run `hsm-kms migrate` with a kubectl that follows a scenario."""

    def __init__(self, directory):
        self.directory = directory
        self.log = directory / "requests"
        self.kubectl = directory / "kubectl"
        self.scenario = directory / "scenario.json"
        script = f'exec {sys.executable} {kubectl_stub.__file__} {self.scenario} "$@"'
        self.kubectl.write_text(f"#!/bin/sh\n{script}\n")
        self.kubectl.chmod(0o700)
        self.play()

    def play(self, **scenario):
        scenario = {"log": str(self.log), "text": TEXT} | scenario
        self.scenario.write_text(json.dumps(scenario))

    def command(self, *arguments):
        return [*HSM_KMS, *self._options(arguments)]

    def run(self, *arguments):
        return command_line.run(*self._options(arguments))

    def _options(self, arguments):
        return ("migrate", "--kubectl", self.kubectl, "--rate", "10000", *arguments)

    def bodies(self):
        """Return the bodies of all POSTs."""
        return self.log.with_suffix(".bodies").read_text().splitlines()

    def requests(self, method=""):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(method)]
