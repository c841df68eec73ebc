"""Webhooks of a cluster: a real HTTPS server that an API server calls."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from typing import TYPE_CHECKING, Any

from tests.harness.etcd_server import make_certificates
from tests.harness.http_server import Handler, HttpServer

if TYPE_CHECKING:
    from pathlib import Path

CHANGED = "changed-by-a-webhook"
UPDATED_SECRETS = {
    "apiGroups": [""],
    "apiVersions": ["v1"],
    "operations": ["UPDATE"],
    "resources": ["secrets"],
}


class _Handler(Handler):
    server: Webhook

    def respond(self) -> None:
        size = int(self.headers["Content-Length"])
        review = json.loads(self.rfile.read(size))
        request = review.pop("request")
        answer = self.server.answers[self.path.partition("?")[0]](request)
        body = json.dumps(review | {"response": {"uid": request["uid"]} | answer})
        self.answer(body.encode(), "application/json")


class Webhook(HttpServer):
    """Serve /mutate, which changes Secrets, and /convert, which converts by version.

    /hold answers only while it is open.

    Args:
        folder: For certificates; it is made.

    Attributes:
        answers: What answers a request, by path.
        asked: Set by each request of /hold.
        open: Set while /hold answers.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.answers = {
            "/mutate": _mutated,
            "/convert": _converted,
            "/hold": self._held,
        }
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()
        pki = make_certificates(folder)
        self._ca = base64.b64encode(pki.ca.read_bytes()).decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server, pki.server_key)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def client_config(self, path: str) -> dict[str, str]:
        """Return what a configuration of the cluster says to reach a path."""
        url = f"https://127.0.0.1:{self.server_port}/{path}"
        return {"url": url, "caBundle": self._ca}

    def _held(self, _: object) -> dict[str, Any]:
        """Allow what is asked, once /hold is open."""
        self.asked.set()
        self.open.wait()
        return {"allowed": True}

    def __exit__(self, *error: object) -> None:
        self.open.set()
        super().__exit__(*error)


def _mutated(request: dict[str, Any]) -> dict[str, Any]:
    """Change data and labels of the object s001, and nothing else."""
    if request["name"] != "s001":
        return {"allowed": True}
    value = base64.b64encode(CHANGED.encode()).decode()
    patch = [
        {"op": "replace", "path": "/data/text", "value": value},
        {"op": "add", "path": "/metadata/labels", "value": {"seen": CHANGED}},
    ]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


def _converted(request: dict[str, Any]) -> dict[str, Any]:
    version = request["desiredAPIVersion"]
    objects = [each | {"apiVersion": version} for each in request["objects"]]
    return {"convertedObjects": objects, "result": {"status": "Success"}}


def mutating(webhook: Webhook, namespace: str) -> dict[str, Any]:
    """Return a MutatingWebhookConfiguration for updates of Secrets of a namespace."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "e2e"},
        "webhooks": [
            {
                "name": "change.example.com",
                "clientConfig": webhook.client_config("mutate"),
                "rules": [UPDATED_SECRETS],
                "namespaceSelector": selector,
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def holding(webhook: Webhook, namespace: str, name: str) -> dict[str, Any]:
    """Return a ValidatingWebhookConfiguration that asks /hold about one Secret."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"hold-{namespace}"},
        "webhooks": [
            {
                "name": "hold.example.com",
                "clientConfig": webhook.client_config("hold"),
                "rules": [UPDATED_SECRETS],
                "namespaceSelector": selector,
                "matchConditions": [
                    {"name": "one", "expression": f"request.name == '{name}'"}
                ],
                "sideEffects": "None",
                "timeoutSeconds": 30,
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def policy(namespace: str) -> list[dict[str, Any]]:
    """Return a MutatingAdmissionPolicy that labels updated Secrets, and its binding."""
    version = "admissionregistration.k8s.io/v1"
    label = f"Object{{metadata: Object.metadata{{labels: {{'seen': '{CHANGED}'}}}}}}"
    mutation = {
        "patchType": "ApplyConfiguration",
        "applyConfiguration": {"expression": label},
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return [
        {
            "apiVersion": version,
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": "e2e"},
            "spec": {
                "matchConstraints": {"resourceRules": [UPDATED_SECRETS]},
                "reinvocationPolicy": "Never",
                "mutations": [mutation],
            },
        },
        {
            "apiVersion": version,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": "e2e"},
            "spec": {
                "policyName": "e2e",
                "matchResources": {"namespaceSelector": selector},
            },
        },
    ]


def widgets(webhook: Webhook) -> dict[str, Any]:
    """Return a CustomResourceDefinition that is stored as v1 and preferred as v2."""
    schema = {"openAPIV3Schema": {"type": "object"}}
    versions = [
        {"name": name, "served": True, "storage": name == "v1", "schema": schema}
        for name in ("v1", "v2")
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"plural": "widgets", "kind": "Widget"},
            "scope": "Namespaced",
            "versions": versions,
            "conversion": {
                "strategy": "Webhook",
                "webhook": {
                    "clientConfig": webhook.client_config("convert"),
                    "conversionReviewVersions": ["v1"],
                },
            },
        },
    }


def aggregated(group: str) -> list[dict[str, Any]]:
    """Return an APIService, and its Service, behind which nothing answers."""
    service = {"name": "nobody", "namespace": "default"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": service,
            "spec": {"ports": [{"port": 443}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1.{group}"},
            "spec": {
                "group": group,
                "version": "v1",
                "service": service,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
            },
        },
    ]
