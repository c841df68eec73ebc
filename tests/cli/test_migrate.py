"""Test `hsm-kms migrate` with rare answers of an API server.

What it does to a real API server is in tests/system/e2e/test_migrate.py.
"""

from __future__ import annotations

import json
import time

import pytest

from hsm_kms.migrate.listing import PAGE
from hsm_kms.migrate.rewrite import IN_A_ROW
from tests.cli import kubectl_stub
from tests.cli.kubectl_stub import LISTS, status
from tests.cli.migrating import TEXT, Migrating


@pytest.fixture
def migrating(directory):
    return Migrating(directory)


def assert_all_written(result, count):
    assert f"secrets: {count} objects: {count} rewritten" == result.stdout.strip()
    assert 0 == result.returncode


def test_rewrites(migrating):
    """Each object is sent back once, and a second run writes nothing."""
    result = migrating.run()

    assert_all_written(result, 3)
    assert "hint: run `hsm-kms etcd scan` to see what is stored now\n" in result.stderr
    assert [
        f"PUT {kubectl_stub.NAMESPACE}/s{number}" for number in range(3)
    ] == migrating.requests("PUT")


def test_json(migrating):
    """`migrate -o json` prints the counts for scripts."""
    shown = json.loads(migrating.run("-o", "json").stdout)

    assert {
        "dry_run": False,
        "skipped": {},
        "resources": {
            "secrets": {
                "objects": 3,
                "rewritten": 3,
                "changed": 0,
                "up_to_date": 0,
                "accepted": 0,
                "gone": 0,
                "refused": 0,
                "unreadable": 0,
                "refusals": [],
                "changes": [],
            }
        },
    } == shown


# Answers that are rare


def test_asked_to_wait(migrating):
    """A request is retried after the time in Retry-After of a 429 or 503."""
    busy = {
        "code": 429,
        "headers": {"Retry-After": "1"},
        "body": status(429, "TooManyRequests"),
    }
    migrating.play(faults={"PUT 2": busy, "PUT 3": busy | {"code": 503}})
    started = time.monotonic()

    assert_all_written(migrating.run(), 3)
    assert time.monotonic() - started > 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"code": None}, id="the connection breaks"),
        pytest.param({"code": 500, "body": "dial tcp: refused"}, id="unreachable"),
        pytest.param(
            {"code": 401, "body": status(401, "Unauthorized")}, id="old token"
        ),
    ],
)
def test_passing_fault(migrating, fault):
    """A restart of the API server or an expired token does not stop a migration."""
    migrating.play(faults={"PUT 2": fault})

    assert_all_written(migrating.run(), 3)


def test_unreachable_at_first(migrating):
    """A wrong kubeconfig is reported at once, with kubectl's message."""
    migrating.play(faults={"GET 1": {"code": 500, "body": "dial tcp: no such host"}})
    result = migrating.run()

    assert [
        "hsm-kms: kubectl cannot reach the API server: dial tcp: no such host",
        "hint: run `kubectl get --raw /readyz` to check the connection",
    ] == result.stderr.splitlines()
    assert 1 == result.returncode
    assert 1 == len(migrating.requests())


def test_credentials_refused(migrating):
    """Wrong credentials are reported at once."""
    fault = {"code": 401, "body": status(401, "Unauthorized", "Unauthorized")}
    migrating.play(faults={"GET 1": fault})

    assert (
        "the API server rejected the credentials: Unauthorized"
        in migrating.run().stderr
    )


@pytest.mark.parametrize(
    ("gone", "lists"),
    [
        pytest.param(
            status(410, "Expired", **{"continue": f"0{PAGE}"}),
            ["0", "100", "0100", "200"],
            id="the API server says where to go on",
        ),
        pytest.param(
            status(410, "Expired"), ["0", "100", "0", "100", "200"], id="it does not"
        ),
        pytest.param(
            status(400, "BadRequest"), ["0", "100", "0", "100", "200"], id="garbage"
        ),
    ],
)
def test_list_expires(migrating, gone, lists):
    """A list that expires is continued or begun again, and no object is left out."""
    fault = {"code": gone["code"], "body": gone}
    migrating.play(objects=2 * PAGE + 1, faults={f"GET {LISTS + 2}": fault})

    result = migrating.run()

    asked = [
        line.partition("continue=")[2] or "0"
        for line in migrating.requests("GET /api/v1/secrets")
    ]
    assert lists == asked
    assert f"{2 * PAGE + 1} rewritten" in result.stdout
    assert 0 == result.returncode


def test_refused_objects_are_named(migrating):
    """Refused objects are named with a reason, the others written; exit 1."""
    denied = 'admission webhook "p.example.com" denied the request: ' + TEXT
    invalid = status(422, "Invalid", f'data: Invalid value: "{TEXT}"')
    invalid["details"] = {"causes": [{"field": "data[text]", "message": TEXT}]}
    migrating.play(
        objects=4,
        faults={
            "PUT 1": {"code": 403, "body": status(403, "Forbidden", denied)},
            "PUT 3": {"code": 422, "body": invalid},
        },
    )

    result = migrating.run()

    assert [
        "secrets: 4 objects: 2 rewritten, 2 refused",
        '  ns/s0: admission webhook "p.example.com" denied the request',
        "  ns/s2: HTTP 422 Invalid (data[text])",
    ] == result.stdout.splitlines()
    assert "hsm-kms: 2 objects refused, and stored as before" in result.stderr
    assert TEXT not in result.stdout + result.stderr
    assert 1 == result.returncode


def test_hopeless(migrating):
    """If every object is refused, the migration stops early."""
    forbidden = 'User "eve" cannot update resource "secrets" in API group ""'
    fault = {"code": 403, "body": status(403, "Forbidden", f"x: {forbidden} in x")}
    faults = {f"PUT {number}": fault for number in range(1, 200)}
    migrating.play(objects=150, faults=faults)

    result = migrating.run()

    assert forbidden in result.stderr
    assert IN_A_ROW == len(migrating.requests("PUT"))
    assert 1 == result.returncode


def test_somebody_keeps_writing(migrating):
    """A conflict is retried a limited number of times."""
    fault = {"code": 409, "body": status(409, "Conflict")}
    faults = {f"PUT {number}": fault for number in range(1, 11)}
    migrating.play(objects=2, faults=faults)

    result = migrating.run()

    assert [
        "secrets: 2 objects: 1 rewritten, 1 refused",
        "  ns/s0: another client keeps changing it",
    ] == result.stdout.splitlines()
