"""Test how keys and text from etcd are shown, and the resource of a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.etcd.resources import resource_of
from hsm_kms.etcd.text import printable, text_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202eright to left", "\\u202eright to left"),
        ("in ü", "in \\xfc"),
        (text_of(b"\xff\x1b"), "\\xff\\x1b"),
        ("x" * 121, "x" * 120 + "..."),
    ],
)
def test_nothing_reaches_a_terminal_but_printable_ascii(text, shown):
    """Control characters and other scripts are escaped, and long text is truncated."""
    assert shown == printable(text)


@pytest.mark.parametrize(
    ("key", "resource"),
    [
        ("/registry/secrets/default/name", "secrets"),
        ("/registry/secrets/default/name.with.dots", "secrets"),
        ("/registry/minions/node-1", "nodes"),
        ("/registry/services/specs/default/kubernetes", "services"),
        ("/registry/services/endpoints/default/kubernetes", "endpoints"),
        ("/registry/controllers/default/rc", "replicationcontrollers"),
        ("/registry/ingress/default/web", "ingresses"),
        ("/registry/example.com/widgets/default/w", "widgets.example.com"),
        (
            "/registry/apiregistration.k8s.io/apiservices/v1.apps",
            "apiservices.apiregistration.k8s.io",
        ),
        ("/registry/a.example.com/b.example.com/things/x", "things.b.example.com"),
        ("/registry/health", "health"),
        ("/registry/", ""),
        ("/registry/a.b.c", "a.b.c"),
        ("/registry", "registry"),
        ("", ""),
    ],
)
def test_resource_of_a_key(key, resource):
    """A key belongs to a resource, named as kubectl names it."""
    assert resource == resource_of(key.encode(), b"/registry/")


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("/registry/secrets/ns/name", "/registry/secrets/"),
        ("/registry/secrets/ns/name", "/registry/secrets/ns/"),
        ("/registry/secrets/ns/name", "/"),
        ("/registry/secrets/ns/name", ""),
        ("/kubernetes.io/secrets/ns/name", "/kubernetes.io/"),
        ("/kubernetes.io/secrets/registry/name", "/kubernetes.io/secrets/"),
        ("/clusters/a/registry/secrets/ns/name", "/clusters/a/registry/"),
    ],
)
def test_resource_of_a_key_below_another_prefix(key, prefix):
    """The resource of a key does not depend on the prefix that is read."""
    assert "secrets" == resource_of(key.encode(), prefix.encode())


@given(st.binary(max_size=3000), st.binary(max_size=30))
def test_any_key_has_a_resource(key, prefix):
    """Any key has a resource, with a name of limited length."""
    assert len(resource_of(key, prefix)) <= 2 * 253 + 1
