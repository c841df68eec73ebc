"""Webhooks of a cluster: a real HTTPS server that an API server calls."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from tests.harness.etcd_server import make_certificates

if TYPE_CHECKING:
    from pathlib import Path

CHANGED = "changed-by-a-webhook"
UPDATED_SECRETS = {
    "apiGroups": [""],
    "apiVersions": ["v1"],
    "operations": ["UPDATE"],
    "resources": ["secrets"],
}


class Webhook:
    """Serve /mutate, which changes Secrets, and /convert, which converts by version.

    /hold answers only while it is open.

    Args:
        folder: For certificates; it is made.

    Attributes:
        asked: Set by each request of /hold.
        open: Set while /hold answers.
    """

    def __init__(self, folder: Path) -> None:
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()
        pki = make_certificates(folder)
        self._ca = base64.b64encode(pki.ca.read_bytes()).decode()
        handler = partial(_Handler, self)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server, pki.server_key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever)

    def client_config(self, path: str) -> dict[str, str]:
        """Return what a configuration of the cluster says to reach a path."""
        port = self._server.server_address[1]
        return {"url": f"https://127.0.0.1:{port}/{path}", "caBundle": self._ca}

    def held(self, _: object) -> dict[str, Any]:
        """Allow what is asked, once /hold is open."""
        self.asked.set()
        self.open.wait()
        return {"allowed": True}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, webhook: Webhook, *arguments: Any) -> None:
        self._answers = {
            "/mutate": _mutated,
            "/convert": _converted,
            "/hold": webhook.held,
        }
        super().__init__(*arguments)

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        review = json.loads(self.rfile.read(size))
        request = review.pop("request")
        answer = self._answers[self.path.partition("?")[0]](request)
        body = json.dumps(review | {"response": {"uid": request["uid"]} | answer})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


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
