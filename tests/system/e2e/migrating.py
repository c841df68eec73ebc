"""Secrets to be migrated, the command, and what watches it."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from hsm_kms.migrate.listing import PAGE
from tests.cli.migrating import Command
from tests.harness.command_line import HSM_KMS
from tests.system.e2e.processes import wait_for
from tests.system.e2e.webhook import Webhook, holding
from tests.system.e2e.world import prefix

TEXT = "what-nobody-may-see"
REST = 200  # objects of the second page
OBJECTS = {
    "all": 3,
    "dry": 5,
    "busy": 12,
    "dying": 20,
    "long": PAGE + REST,
    "guarded": 3,
}
OBJECTS |= {"unwritable": 25, "kinds": 0, "every": 3, "verified": 3}


def names(count):
    return [f"s{number:03}" for number in range(count)]


class Migrating(Command):
    """Namespaces of Secrets, all of them stale, and the command."""

    timeout = 120  # seconds

    def __init__(self, world):
        self.world = world
        self.kubeconfig = world.api.kubeconfig

    def path(self, namespace, name=""):
        return f"/api/v1/namespaces/{namespace}/secrets/{name}".rstrip("/")

    def make(self, namespace, names):
        for name in names:
            body = {
                "metadata": {"name": name},
                "stringData": {"text": f"{TEXT}-{namespace}-{name}"},
            }
            self.world.api.request("POST", self.path(namespace), body)

    def stored(self, namespace):
        """The Secrets of a namespace as etcd holds them."""
        return {
            key.partition("/")[2]: value
            for key, value in self.world.etcd.secrets().items()
            if key.startswith(f"{namespace}/")
        }

    def stale(self, namespace):
        return {
            name
            for name, value in self.stored(namespace).items()
            if not value.startswith(prefix("v2"))
        }

    def texts(self, namespace):
        """Return the texts of the Secrets as the API server reads them."""
        _, body = self.world.api.get(self.path(namespace))
        return {
            item["metadata"]["name"]: base64.b64decode(item["data"]["text"]).decode()
            for item in json.loads(body)["items"]
        }

    def command(self, *arguments, kubeconfig=None):
        return [
            *HSM_KMS,
            "migrate",
            *("--kubectl", str(self.world.binaries.kubectl)),
            *("--kubeconfig", str(kubeconfig or self.kubeconfig)),
            *arguments,
        ]

    def verify(self):
        """Run `etcd verify` on all that etcd holds."""
        etcd, plugin = self.world.etcd, self.world.plugin
        return subprocess.run(
            [
                *HSM_KMS,
                "etcd",
                "verify",
                "-o",
                "json",
                *("--endpoints", etcd.url, "--config", str(plugin.config_file)),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.world.environment,
        )

    @contextmanager
    def held(self, namespace, name):
        """Hold the next write of a Secret at /hold of the webhook that is yielded."""
        api, path = self.world.api, self.path(namespace, name)
        with Webhook(self.world.folder / f"hold-{namespace}") as webhook:
            made = json.dumps(holding(webhook, namespace, name)).encode()
            api.kubectl("create", "-f", "-", stdin=made)

            def in_force():
                body = json.loads(api.get(path)[1])
                api.request("PUT", f"{path}?dryRun=All", body)
                return webhook.asked.is_set()

            wait_for("a question of the API server", in_force, timeout=60)
            webhook.asked.clear()
            webhook.open.clear()
            yield webhook
            webhook.open.set()
            api.kubectl("delete", "-f", "-", stdin=made)

    def another_user(self, change):
        """A kubeconfig like the administrator's, changed."""
        config = json.loads(self.kubeconfig.read_text())
        change(config["users"][0]["user"])
        path = self.world.folder / "another-kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def logging_in_by_program(self):
        """A kubeconfig like the administrator's, with an exec plugin for its token."""
        program = self.world.folder / "login"
        version = "client.authentication.k8s.io/v1"

        def by_program(user):
            status = {"token": user.pop("token")}
            shown = {"apiVersion": version, "kind": "ExecCredential", "status": status}
            program.write_text(f"#!/bin/sh\necho '{json.dumps(shown)}'\n")
            program.chmod(0o700)
            user["exec"] = {
                "apiVersion": version,
                "command": str(program),
                "interactiveMode": "IfAvailable",
            }

        return self.another_user(by_program)


def without_versions(body):
    items = json.loads(body)["items"]
    for item in items:
        del item["metadata"]["resourceVersion"]
    return items


def special_kinds(made):
    """Secrets that the API server looks at more closely than at others."""
    made.world.api.kubectl(
        *("create", "secret", "generic", "by-kubectl", "-n", "kinds"),
        f"--from-literal=text={TEXT}",
    )
    api, path = made.world.api, made.path("kinds")
    text = {"text": base64.b64encode(TEXT.encode()).decode()}
    for body in (
        {"metadata": {"name": "immutable"}, "data": text, "immutable": True},
        {
            "metadata": {
                "name": "of-an-account",
                "annotations": {"kubernetes.io/service-account.name": "nobody"},
            },
            "type": "kubernetes.io/service-account-token",
            "data": text,
        },
        {
            "metadata": {"name": "held", "finalizers": ["example.com/hold"]},
            "data": text,
        },
    ):
        status, answer = api.request("POST", path, body)
        assert status == 201, answer
    api.request("DELETE", f"{path}/held")  # stays, marked, for its finalizer


class CommandLines(threading.Thread):
    """Looks for a text in the command line of every process, again and again."""

    def __init__(self, text):
        super().__init__(daemon=True)  # a test that fails does not stop it
        self._text = text.encode()
        self._done = threading.Event()
        self.found = set()

    def run(self):
        while not self._done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if self._text in line or base64.b64encode(self._text)[:16] in line:
                    self.found.add(line)
            time.sleep(0.02)

    def stop(self):
        self._done.set()
        self.join()


POLICY = [
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "guard"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["secrets"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": "object.metadata.name != 's001'",
                    "messageExpression": "'it holds ' + string(object.data.text)",
                }
            ],
        },
    },
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "guard"},
        "spec": {
            "policyName": "guard",
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "guarded"}
                }
            },
        },
    },
]
