"""Test the options of `hsm-kms migrate`, and how it names resources."""

from __future__ import annotations

import json

import pytest

from hsm_kms.errors import ConfigError
from hsm_kms.migrate.api import Answer
from hsm_kms.migrate.refusals import why_not
from hsm_kms.migrate.resources import Resource, Wanted, parse_resource
from tests.cli.kubectl_stub import status
from tests.cli.migrating import Migrating

SHOWS_CONFIG = """
case $* in --kubeconfig=*config*) exec cat ${1#*=};; config*) exit 0;; esac
"""
RBAC = 'User "system:sa:a" cannot update resource "secrets" in API group ""'


@pytest.fixture
def migrating(directory):
    return Migrating(directory)


# Usage


def test_no_kubectl(migrating):
    """If kubectl is missing, the error says what to do."""
    result = migrating.run("--kubectl", "/nowhere/kubectl")

    assert [
        "hsm-kms: the program '/nowhere/kubectl' was not found",
        (
            "hint: install kubectl, or give its path with --kubectl; or a command, "
            "such as --kubectl 'k3s kubectl'"
        ),
    ] == result.stderr.splitlines()
    assert 1 == result.returncode


def test_kubectl_that_ends(migrating):
    """If kubectl ends or is killed, the error says so."""
    migrating.kubectl.write_text(f"#!/bin/sh\n{SHOWS_CONFIG}\nexit 3\n")

    result = migrating.run()

    assert "hsm-kms: kubectl exited with code 3" in result.stderr
    assert 1 == result.returncode


def test_kubeconfig_unusable(migrating):
    """If the kubeconfig is unusable, kubectl's own message is printed."""
    migrating.kubectl.write_text(
        "#!/bin/sh\necho 'error: no such context' >&2\nexit 1\n"
    )

    result = migrating.run("--context", "nope")

    assert (
        "hsm-kms: kubectl cannot use this kubeconfig: no such context" in result.stderr
    )


def test_options_reach_kubectl(migrating):
    """--kubeconfig and --context are given to kubectl before its command."""
    said = migrating.directory / "said"
    inner = migrating.kubectl.read_text().splitlines()[1]
    migrating.kubectl.write_text(f'#!/bin/sh\necho "$@" >> {said}\n{inner}\n')

    kubeconfig = migrating.directory / "k c"
    kubeconfig.touch()

    migrating.run("--kubeconfig", kubeconfig, "--context", "prod")

    assert {True} == {
        line.startswith(f"--kubeconfig={kubeconfig} --context=prod ")
        for line in said.read_text().splitlines()
    }


def test_no_such_kubeconfig(migrating, monkeypatch):
    """A kubeconfig that does not exist is named, from the option or the variable."""
    migrating.kubectl.write_text(
        "#!/bin/sh\necho 'error: current-context must exist in order to minify' >&2\n"
        "exit 1\n"
    )
    empty = migrating.directory / "empty"
    empty.touch()

    by_option = migrating.run("--kubeconfig", "/nope")
    without_context = migrating.run("--kubeconfig", empty)
    monkeypatch.setenv("KUBECONFIG", "/nope:/nope2")
    by_variable = migrating.run()

    assert "'/nope' does not exist" in by_option.stderr
    assert 2 == by_option.returncode
    assert [
        f"hsm-kms: the kubeconfig {empty} has no current context",
        "hint: choose one with --context",
    ] == without_context.stderr.splitlines()
    assert [
        "hsm-kms: KUBECONFIG=/nope:/nope2 does not exist",
        "hint: correct the variable, or give --kubeconfig",
    ] == by_variable.stderr.splitlines()


def test_no_such_namespace(migrating):
    """A namespace that does not exist is an error, not 0 objects."""
    result = migrating.run("-n", "nope")

    assert [
        "hsm-kms: the namespace nope does not exist",
        "hint: `kubectl get namespaces` lists all namespaces",
    ] == result.stderr.splitlines()
    assert 1 == result.returncode


def test_namespaces_that_may_not_be_seen(migrating):
    """A user who may not get namespaces can migrate one."""
    forbidden = {"code": 403, "body": status(403, "Forbidden")}
    migrating.play(answers={"/api/v1/namespaces/ns": forbidden})

    assert "3 rewritten" in migrating.run("-n", "ns").stdout


def test_kubectl_in_words(migrating):
    """--kubectl takes a command in shell words, and refuses what is none."""
    inner = migrating.kubectl.read_text().splitlines()[1]
    migrating.kubectl.write_text(f"#!/bin/sh\n[ $1 = kubectl ] && shift\n{inner}\n")

    right = migrating.run("--kubectl", f"'{migrating.kubectl}' kubectl")
    wrong = migrating.run("--kubectl", f"'{migrating.kubectl} kubectl")

    assert 0 == right.returncode, right.stderr
    assert "is not a command: no closing quotation" in wrong.stderr
    assert 1 == wrong.returncode


def test_a_long_directory(migrating, monkeypatch):
    """A directory that is too long in bytes is named before kubectl is started."""
    long = migrating.directory / ("ü" * 45)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    result = migrating.run()

    assert "is too long for a socket\nhint: set TMPDIR" in result.stderr


def test_nothing_to_explain(migrating):
    """Without StorageVersionMigration, --explain says how to enable it."""
    result = migrating.run("--explain")

    assert (
        "hsm-kms: this API server does not serve storagemigration.k8s.io\n"
        in result.stderr
    )
    assert "" == result.stdout
    assert 1 == result.returncode


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--rate", "0"], "0.0 is not in the range x>0"),
        (["--resource", "Secret/x"], "'Secret/x' is not a resource"),
        (["--dry-run", "--resume", "f"], "--dry-run and --resume exclude each other"),
    ],
)
def test_bad_usage(migrating, arguments, fault):
    """Bad usage exits with 2 before kubectl is started."""
    result = migrating.run(*arguments)

    assert fault in result.stderr
    assert 2 == result.returncode


# Parts


@pytest.mark.parametrize(
    ("text", "name", "group"),
    [
        ("secrets", "secrets", ""),
        ("deployments.apps", "deployments", "apps"),
        ("widgets.example.com", "widgets", "example.com"),
        ("*.apps", "*", "apps"),
        ("*.", "*", ""),
        ("*.*", "*", "*"),
    ],
)
def test_resource_names(text, name, group):
    """Resources are named as in an EncryptionConfiguration."""
    assert Wanted(name, group) == parse_resource(text)


@pytest.mark.parametrize(
    "text", ["", "*", ".", "secrets.", "secrets.*", "a/b", "Secrets", "a b", "../x"]
)
def test_no_resource_names(text):
    """Other names are refused before they get into a path."""
    with pytest.raises(ConfigError, match="is not a resource"):
        parse_resource(text)


def test_paths():
    """`Resource.path` returns where the API server lists the objects."""
    core = Resource(name="secrets", group="", version="v1", namespaced=True)
    nodes = Resource(name="nodes", group="", version="v1", namespaced=False)
    apps = Resource(name="deployments", group="apps", version="v1", namespaced=True)

    assert "/api/v1/secrets" == core.path()
    assert "/api/v1/namespaces/ns/secrets" == core.path("ns")
    assert "/api/v1/nodes" == nodes.path("ns")
    assert "/apis/apps/v1/namespaces/ns/deployments" == apps.path("ns")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (f'secrets "x" is forbidden: {RBAC} in the namespace "ns"', RBAC),
        (
            'admission webhook "a.b" does not support dry run',
            'admission webhook "a.b" does not support dry run',
        ),
        (
            'Internal error occurred: failed calling webhook "a.b": TEXT',
            'failed calling webhook "a.b"',
        ),
        (
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: TEXT",
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request",
        ),
        (
            'secrets "x" is forbidden: exceeded quota: q, requested: a=TEXT, used: b',
            "exceeded quota: q",
        ),
        ("TEXT", "HTTP 403 Forbidden"),
        ('admission webhook "TEXT TEXT" denied the request', "HTTP 403 Forbidden"),
    ],
)
def test_refusals_quote_no_object(message, why):
    """Of a webhook's message only names in known places are repeated."""
    body = json.dumps(status(403, "Forbidden", message)).encode()

    assert why == why_not(Answer(code=403, body=body))


@pytest.mark.parametrize("body", [b"", b"TEXT", b"[]", b'{"kind": "Secret"}', b"\xff"])
def test_refusal_that_is_no_status(body):
    """A refusal that is no Status is not repeated."""
    assert "HTTP 502" == why_not(Answer(code=502, body=body))
