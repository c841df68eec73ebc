"""StorageVersionMigrations as an API server shows them that follows a scenario."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from hsm_kms.errors import HsmKmsError
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.kubectl import MIGRATING, Kubectl, running_proxy
from hsm_kms.migrate.manifest import GROUP, require_version
from hsm_kms.migrate.resources import Resource
from hsm_kms.migrate.storage_version import StorageVersionMigrations
from tests.cli.migrating import TEXT, Migrating

KEY = "a" * 26
SECRETS = Resource(name="secrets", group="", version="v1", namespaced=True)
NAME = f"hsm-kms-{KEY}-secrets"
PATH = f"/apis/{GROUP}/v1/storageversionmigrations"
VERSION = {"groupVersion": f"{GROUP}/v1", "version": "v1"}
SERVED = {
    f"/apis/{GROUP}": {
        "code": 200,
        "body": {"name": GROUP, "versions": [VERSION], "preferredVersion": VERSION},
    }
}


def shown(*conditions):
    """Return an answer with a migration that has these conditions, which are true."""
    listed = [
        {"type": kind, "status": "True", "reason": reason, "message": message}
        for kind, reason, message in conditions
    ]
    return {"code": 200, "body": {"status": {"conditions": listed}}}


@pytest.fixture
def migrating(directory):
    """Provide a kubectl that follows a scenario."""
    return Migrating(directory)


@pytest.fixture
def api(migrating):
    """Connect to the API server of a scenario."""
    with ExitStack() as stack:

        def connect(answers):
            migrating.play(answers=answers)
            kubectl = Kubectl(program=str(migrating.kubectl))
            proxy = stack.enter_context(running_proxy(kubectl, MIGRATING))
            return stack.enter_context(connected(proxy))

        yield connect


def test_created(api, migrating):
    """The first migration of a key and resource is created, under its name."""
    served = api(SERVED | {PATH: {"code": 201, "body": {}}})
    version = require_version(served)
    made = StorageVersionMigrations(served, version, KEY).current(SECRETS)

    assert ("v1", f"{NAME}-1: no condition yet") == (version, str(made))
    assert [f"POST {PATH}"] == migrating.requests("POST")
    body = json.loads(migrating.bodies()[-1])
    assert f"{GROUP}/v1" == body["apiVersion"]
    assert {"name": f"{NAME}-1"} == body["metadata"]
    assert {"resource": {"group": "", "resource": "secrets"}} == body["spec"]


def test_goes_on(api, migrating):
    """A migration that an interrupted run has created is watched, not created again."""
    answers = {
        f"{PATH}/{NAME}-1": shown(("Succeeded", "", "")),
        f"{PATH}/{NAME}-2": shown(("Running", "StorageVersionMigrationRunning", "")),
    }
    found = StorageVersionMigrations(api(answers), "v1", KEY).current(SECRETS)

    assert f"{NAME}-2: Running (StorageVersionMigrationRunning)" == str(found)
    assert not found.ended
    assert [] == migrating.requests("POST")


def test_failed(api):
    """A failed migration says so by its reason; what a webhook quotes is left out."""
    message = f'admission webhook "deny.example.com" denied the request: {TEXT}'
    answers = {f"{PATH}/x": shown(("Running", "", ""), ("Failed", "Why", message))}
    found = StorageVersionMigrations(api(answers), "v1", KEY).read("x")

    assert found
    assert (True, True) == (found.ended, found.failed)
    assert (
        'x: Failed (Why: admission webhook "deny.example.com" denied the request)'
        == str(found)
    )


def test_forbidden(api):
    """A user who may not create migrations learns that."""
    forbidden = {"kind": "Status", "reason": "Forbidden", "message": "no"}
    answers = {PATH: {"code": 403, "body": forbidden}}

    with pytest.raises(HsmKmsError, match="forbidden to create StorageVersionMig"):
        StorageVersionMigrations(api(answers), "v1", KEY).current(SECRETS)


def test_not_served(api):
    """An API server without the group is refused, with what enables it."""
    with pytest.raises(HsmKmsError, match=f"does not serve {GROUP}") as error:
        require_version(api({}))
    assert "by default from Kubernetes 1.37 on" in str(error.value.hint)
