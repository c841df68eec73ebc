"""Test that `hsm-kms migrate` goes on past what cannot be migrated.

What real clusters do is in tests/system/e2e/test_migrate_faults.py.
"""

from __future__ import annotations

import json

import pytest

from hsm_kms.migrate.objects import changed_fields
from hsm_kms.migrate.rewrite import IN_A_ROW
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE
from tests.cli.kubectl_stub import LISTS, NAMESPACE, status
from tests.cli.migrating import TEXT, Migrating

EVERY = ["get", "list", "update"]
DOWN = {"code": 404, "body": status(404, "NotFound", "no such group")}
SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"


@pytest.fixture
def migrating(directory):
    return Migrating(directory)


def group(name):
    version = {"version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def served(**verbs):
    """Return the discovery of a group version, by name of the resource."""
    names = {name.replace("_", "/"): each for name, each in verbs.items()}
    return {"body": {"resources": [{"name": n, "verbs": v} for n, v in names.items()]}}


def cluster(*groups, **answers):
    """Return the answers of a cluster with these groups beside the core group."""
    names = [each.partition("/")[0] for each in groups]
    found = {
        "/apis": {"body": {"groups": [group(name) for name in names]}},
        "/api": {"body": {}},
        SERVICES: {"code": 403, "body": status(403, "Forbidden")},
        **{f"/apis/{name}": {"body": group(name)} for name in names},
        **answers,
    }
    return {path: {"code": 200} | answer for path, answer in found.items()}


def test_what_cannot_be_discovered_or_updated(migrating):
    """With *.* a group that fails and a kind without update are skipped, named."""
    answers = cluster("a.example", "b.example", "c.example")
    answers["/apis/a.example/v1"] = DOWN
    parts = served(fixed=["get", "list"], made=["create"], fixed_status=["get"])
    answers["/apis/b.example/v1"] = {"code": 200} | parts
    answers["/apis/c.example/v1"] = {"code": 200} | served(things=EVERY)
    answers["/apis/c.example/v1/things"] = {"code": 200, "body": {"metadata": {}}}
    migrating.play(answers=answers)

    result = migrating.run("--resource", "*.*")
    one = migrating.run("--resource", "fixed.b.example")

    cause = "cannot discover the API's resources: 404 no such group"
    assert [
        "secrets: 3 objects: 3 rewritten",
        f"*.a.example: skipped: {cause}",
        "fixed.b.example: skipped: the API server has no update for it",
    ] == result.stdout.splitlines()
    assert "hsm-kms: skipped: *.a.example, fixed.b.example\n" in result.stderr
    assert "has no resource fixed.b.example that can be listed and" in one.stderr
    assert (1, 1) == (result.returncode, one.returncode)


def test_aggregated_groups(migrating):
    """What another API server stores is not asked for, and is no fault."""
    answers = cluster("metrics.k8s.io", "b.example")
    answers["/apis/b.example/v1"] = {"code": 200} | served()
    services = [
        {"spec": {"group": "metrics.k8s.io", "service": {"name": "m"}}},
        {"spec": {"group": "b.example"}},
        {"spec": {"group": "", "service": None}},
    ]
    answers[SERVICES] = {"code": 200, "body": {"items": services}}
    migrating.play(answers=answers)

    result = migrating.run("--resource", "*.*")
    named = migrating.run("--resource", "*.metrics.k8s.io")

    said = "not migrated, because other API servers store them: *.metrics.k8s.io\n"
    assert said in result.stderr
    assert 0 == result.returncode, result.stderr
    assert "metrics.k8s.io is served by another API server" in named.stderr
    assert 1 == named.returncode
    assert [] == migrating.requests("GET /apis/metrics.k8s.io")


def test_one_resource_of_several_is_refused(migrating):
    """A resource that may not be listed or updated does not keep the others back."""
    answers = cluster("a.example", "b.example")
    items = [
        {"metadata": {"name": f"x{number}", "uid": "u", "resourceVersion": "1"}}
        for number in range(IN_A_ROW + 5)
    ]
    forbidden = {"code": 403, "body": status(403, "Forbidden", "not you")}
    answers |= {
        "/apis/a.example/v1": {"code": 200} | served(things=EVERY),
        "/apis/a.example/v1/things": forbidden,
        "/apis/b.example/v1": {"code": 200} | served(others=EVERY),
        "/apis/b.example/v1/others": {
            "code": 200,
            "body": {"metadata": {}, "items": items},
        },
    }
    answers |= {f"/apis/b.example/v1/others/x{n}": forbidden for n in range(len(items))}
    migrating.play(answers=answers)
    resources = ("things.a.example", "others.b.example", "secrets")

    result = migrating.run(*(f"--resource={name}" for name in resources))

    lines = result.stdout.splitlines()
    assert f"others.b.example: {IN_A_ROW} objects: {IN_A_ROW} refused" == lines[0]
    assert "secrets: 3 objects: 3 rewritten" in lines
    assert "things.a.example: skipped: forbidden to list things.a.example: not you" in (
        lines
    )
    said = f"others.b.example: skipped: {IN_A_ROW} others.b.example in a row were"
    assert said in result.stdout
    assert 1 == result.returncode


# Objects that cannot be read


def unreadable(name, why):
    text = f'Internal error occurred: unable to transform key "{name}": {why}'
    return {"code": 500, "body": status(500, "InternalError", text)}


UNAVAILABLE = "failed to decrypt: rpc error: code = Unavailable desc = no plugin"


def test_a_kms_plugin_that_restarts(migrating):
    """An object whose KMS plugin was not reached is read again before it is named."""
    bad = unreadable("/registry/secrets/ns/s0", UNAVAILABLE)
    migrating.play(faults={f"GET {LISTS + number}": bad for number in range(1, 5)})

    result = migrating.run()

    assert "secrets: 3 objects: 3 rewritten\n" == result.stdout
    assert 0 == result.returncode


def test_a_kms_plugin_that_is_down(migrating):
    """If the KMS plugin stays down, the migration ends and names it."""
    faults = {}
    for number in range(1, 100):  # three pages, four tries, then each object once
        name = f"s{max(0, number - 7)}"
        key = f"/registry/secrets/ns/{name}"
        faults[f"GET {LISTS + number}"] = unreadable(key, UNAVAILABLE)
    migrating.play(objects=40, faults=faults)

    result = migrating.run()

    assert (
        f"{IN_A_ROW} secrets in a row cannot be decrypted, the last:" in result.stderr
    )
    assert "hint: check that the KMS plugin of the API server is" in result.stderr
    assert 1 == result.returncode


def test_an_object_of_another_scope(migrating):
    """If the plugin says that an object is not authentic, the hint names the scope."""
    why = f"rpc error: code = InvalidArgument desc = {CIPHERTEXT_SENTENCE}"
    bad = unreadable("/registry/secrets/ns/s0", f"failed to decrypt DEK, error: {why}")
    migrating.play(faults={f"GET {LISTS + number}": bad for number in (1, 2, 3)})

    result = migrating.run()

    assert 1 == result.returncode
    assert "1 object unreadable" in result.stderr
    assert (
        "hint: where the ciphertext is not authentic, compare `scope` in the "
        "configuration with that of the node that encrypted this; "
    ) in result.stderr


def test_refusals_beside_an_unreadable_object(migrating):
    """The migration ends if every object is refused but those that are unreadable."""
    bad = unreadable("/registry/secrets/ns/s0", "no matching prefix found")
    forbidden = {"code": 403, "body": status(403, "Forbidden", "not you")}
    migrating.play(
        objects=2 * IN_A_ROW,
        faults={f"GET {LISTS + number}": bad for number in (1, 2, 3)},
        answers={f"{NAMESPACE}/s{n}": forbidden for n in range(2 * IN_A_ROW)},
    )

    result = migrating.run()

    assert IN_A_ROW == len(migrating.requests("PUT"))
    assert f"{IN_A_ROW} secrets in a row were refused, the last: " in result.stderr
    assert 1 == result.returncode


def test_a_token_that_is_refused(migrating):
    """If the API server does not go on behind the object, the migration ends."""
    bad = unreadable("/registry/secrets/ns/s0", "no matching prefix found")
    faults = {f"GET {LISTS + number}": bad for number in (1, 2, 3, 5, 6, 7)}
    refused = {"code": 400, "body": status(400, "BadRequest", "continue key")}
    migrating.play(faults=faults | {f"GET {LISTS + 4}": refused})

    result = migrating.run()

    assert "cannot list secrets behind ns/s0, which is unreadable" in result.stderr
    assert 1 == result.returncode


def test_an_object_that_nothing_names(migrating):
    """If no error names the object, the rest of its namespace is skipped, not more."""
    said = f"cannot decode {TEXT}"
    fault = {"code": 500, "body": status(500, "InternalError", said)}
    names = ["empty", "ns", "ns-2"]
    spaces = {"items": [{"metadata": {"name": name}} for name in names]}
    migrating.play(
        faults={f"GET {LISTS + number}": fault for number in (1, 2, 3, 7)},
        answers={
            "/api/v1/namespaces": {"code": 200, "body": spaces},
            "/api/v1/namespaces/empty/secrets": {"code": 200, "body": {}},
        },
    )

    result = migrating.run()

    # The stand-in for a cluster has objects in one namespace only.
    assert "skipped: secrets of namespace ns\n" in result.stderr
    reason = "cannot list secrets: HTTP 500 InternalError"
    assert f"secrets of namespace ns: skipped: {reason}" in result.stdout
    assert TEXT not in result.stdout + result.stderr
    assert 1 == result.returncode


@pytest.mark.parametrize(
    ("after", "fields"),
    [
        ({}, ""),
        ({"kind": "Secret", "apiVersion": "v1"}, ""),
        ({"data": {"a": TEXT, "b": "new"}}, "data[b]"),
        ({"data": None}, "data[a]"),
        (
            {"metadata": {"name": "n", "labels": {"x.y/z": "1"}}},
            "metadata.labels[x.y/z]",
        ),
        ({"metadata": {"name": "n", "labels": {}, "finalizers": []}}, ""),
        ({"metadata": {"name": "n", "generation": 2, "managedFields": [1]}}, ""),
        (
            {"metadata": {"name": "n", "ownerReferences": [{}]}},
            "metadata.ownerReferences",
        ),
        ({"spec": {"a": [1], "b": {"c": 2}}}, "spec.a, spec.b.c"),
        ({"type": "Other", "immutable": True}, "immutable, type"),
        (
            {"data": dict.fromkeys("abcdefg", "1")},
            "data[a], data[b], data[c], data[d], data[e] and 2 more",
        ),
    ],
)
def test_changed_fields(after, fields):
    """Fields that differ are named, without their values."""
    sent = {"metadata": {"name": "n", "resourceVersion": "1"}, "data": {"a": TEXT}}
    received = json.dumps(sent | after).encode()

    assert fields == changed_fields(json.dumps(sent).encode(), received)
