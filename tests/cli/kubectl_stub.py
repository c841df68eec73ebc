"""Act as kubectl with an API server that follows a scenario: FILE ARGUMENT...

For what a real API server does too rarely: the answers named in "faults" are given
instead of the usual ones, by method and number ("PUT 3" is the third PUT; the third
attempt counts as the fourth). Those in "answers" are given by path. Every request is
appended to "log".
"""

from __future__ import annotations

import base64
import json
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "/api/v1/namespaces/ns/secrets"
LISTS = 2  # GETs before the first list: the resources, and storagemigration.k8s.io


class Cluster:
    """Hold the Secrets of one namespace, all of them stored under an old key."""

    def __init__(self, scenario):
        self.faults = scenario.get("faults", {})
        self.answers = scenario.get("answers", {})
        self.log = Path(scenario["log"])
        self.objects = {
            f"s{number}": self._object(f"s{number}", scenario)
            for number in range(scenario.get("objects", 3))
        }
        self.seen = {"GET": 0, "PUT": 0, "POST": 0}

    @staticmethod
    def _object(name, scenario):
        meta = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1"}
        return {"metadata": meta, "data": {"text": scenario.get("text", "dGV4dA==")}}

    def answer(self, method, url, body):
        """Return code, headers and body; the code None breaks the connection."""
        with self.log.open("a") as log:
            log.write(f"{method} {url}\n")
        if method == "POST":
            with self.log.with_suffix(".bodies").open("ab") as bodies:
                bodies.write(body + b"\n")
        self.seen[method] += 1
        fault = self.faults.get(f"{method} {self.seen[method]}")
        fault = fault or self.answers.get(url.partition("?")[0])
        if fault:
            return fault["code"], fault.get("headers", {}), fault.get("body")
        parts = urlsplit(url)
        if method == "PUT":
            return self._put(json.loads(body))
        return self._get(parts.path, parse_qs(parts.query))

    def _put(self, found):
        known = self.objects[found["metadata"]["name"]]
        same = (
            known["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
        )
        if not same:
            return 409, {}, status(409, "Conflict")
        known["metadata"]["resourceVersion"] = "2"
        return 200, {}, known

    def _get(self, path, query):
        if path == "/api/v1":
            verbs = ["get", "list", "update"]
            secrets = {"name": "secrets", "namespaced": True, "verbs": verbs}
            return 200, {}, {"resources": [secrets]}
        if path in {"/api/v1/secrets", NAMESPACE}:
            return 200, {}, self._page(query)
        if path == "/api/v1/namespaces/ns":
            return 200, {}, {"kind": "Namespace", "metadata": {"name": "ns"}}
        name = path.removeprefix(NAMESPACE + "/")
        if name in self.objects:
            return 200, {}, self.objects[name]
        return 404, {}, status(404, "NotFound")

    def _start(self, token):
        """Return where a list begins: by our own token, or by one that was made."""
        if token.isdecimal():
            return int(token)
        made = json.loads(base64.urlsafe_b64decode(token + "=="))
        name = made["start"].rstrip("\0").rpartition("/")[2]
        names = list(self.objects)
        return names.index(name) + 1 if name in names else len(names)

    def _page(self, query):
        start = self._start(query.get("continue", ["0"])[0])
        end = start + int(query["limit"][0])
        items = list(self.objects.values())
        left = len(items) - end
        meta = {"continue": str(end), "remainingItemCount": left} if left > 0 else {}
        return {"metadata": meta, "items": items[start:end]}


def status(code, reason, message="", **metadata):
    """Return a metav1.Status."""
    return {
        "kind": "Status",
        "code": code,
        "reason": reason,
        "message": message,
        "metadata": metadata,
    }


class Handler(BaseHTTPRequestHandler):
    """Serve HTTP/1.1 over the server's socket."""

    protocol_version = "HTTP/1.1"

    def _serve(self):
        length = int(self.headers.get("Content-Length", 0))
        code, headers, body = self.server.cluster.answer(
            self.command, self.path, self.rfile.read(length)
        )
        if code is None:
            self.close_connection = True
            return
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(code)
        for name, value in {**headers, "Content-Length": len(text)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = do_POST = _serve  # noqa: N815 - the base class looks for these

    def address_string(self):
        return "test"

    def log_message(self, *args):
        pass


def main():
    scenario = json.loads(Path(sys.argv[1]).read_text())
    arguments = sys.argv[2:]
    if "config" in arguments:
        sys.stdout.write(scenario.get("server", "https://cluster.example"))
        return
    (path,) = [
        each.partition("=")[2] for each in arguments if each.startswith("--unix-socket")
    ]
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        server.daemon_threads = True
        server.cluster = Cluster(scenario)
        server.serve_forever()


if __name__ == "__main__":
    main()
