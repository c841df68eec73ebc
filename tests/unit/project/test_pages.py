"""Test that tests run every command on a page, and what counts as a difference."""

import ast
from pathlib import Path

import pytest

from tests.harness.pages import blocks, match, pages

TESTS = Path(__file__).parents[2]
NOT_RUN = {
    ("docs/install/k3s.md", "The API server"): "wants k3s",
    ("docs/install/kind.md", "kind"): "wants a running Docker",
    ("docs/install/kind.md", "kind (2)"): "wants a running Docker",
    ("docs/install/kubeadm.md", "kube-apiserver"): "wants a cluster of kubeadm",
    ("docs/install/kubeadm.md", "So that upgrades keep it"): "wants kubeadm's cluster",
    ("docs/install/rke2-and-rancher.md", "RKE2 encrypts Secrets already"): "wants RKE2",
    ("docs/troubleshooting.md", "SELinux"): "ausearch: wants a kernel with SELinux",
    ("docs/troubleshooting.md", "SELinux (2)"): "semanage: wants a kernel with SELinux",
}

OLD, NEW, OTHER = "a" * 26, "b" * 26, "c" * 26
SHOWN = (
    "generated aaaaaaaaaaaaaaaaaaaaaaaaaa (CKA_ID 686b6d7301000000006b01a2a8)",
    "at 2026-11-21T13:54:48Z, in 10 min, cost 0.4 ms",
    "...",
    "OBJECTS  NAME  KEY_ID",
    "    194  hsm   bbbbbbbbbbbbbbbbbbbbbbbbbb",
    "0 objects under aaaaaaaaaaaaaaaaaaaaaaaaaa in /home/you",
    "  hint: pods 69, nodes 50, ...",
)
PRINTED = """\
generated cccccccccccccccccccccccccc (CKA_ID 686b6d7301000000007777777777777)
at 2027-01-02T03:04:05Z, in 9 s, cost 12.7 ms
any line

OBJECTS  NAME          KEY_ID
  7  hsm           bbbbbbbbbbbbbbbbbbbbbbbbbb
0 objects under cccccccccccccccccccccccccc in /srv/x
  hint: pods 1, nodes 2, others 3
"""
NAMES = {"/home/you": "/srv/x"}


def test_what_varies():
    """Numbers, times, hexadecimal digits and widths may differ; key_ids are learned."""
    assert {OLD: OTHER, NEW: NEW} == match(SHOWN, PRINTED, NAMES)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("generated", "made"),  # a changed word
        ("at 2027-01-02T03:04:05Z", "at once"),
        ("in 9 s", "in a while"),
        ("in 9 s,", "in 9 s or so,"),
        ("cost 12.7 ms", "cost 12 ms"),
        ("OBJECTS  NAME          KEY_ID\n", ""),  # a missing line
        ("0 objects under", "another line\n0 objects under"),  # an additional one
        ("0 objects under", "3 objects under"),
        ("under cccccccccccccccccccccccccc", "under dddddddddddddddddddddddddd"),
        ("/srv/x", "/srv/y"),
        ("  hint", "hint"),
        ("  hint: pods 1, nodes 2, others 3\n", ""),
        ("others 3\n", "others 3\nthe end\n"),
    ],
)
def test_what_differs(before, after):
    """A changed word, a missing line, an additional line or another key differ."""
    assert before in PRINTED
    assert match(SHOWN, PRINTED.replace(before, after), NAMES) is None


def test_known_keys():
    """A key_id that was learned before stands for the same key."""
    shown = ("current: aaaaaaaaaaaaaaaaaaaaaaaaaa",)

    assert {} == match(shown, f"current: {OTHER}", {OLD: OTHER})
    assert match(shown, f"current: {NEW}", {OLD: OTHER}) is None


def walked():
    """Yield page and title of each block that a test goes through."""
    for path in TESTS.rglob("*.py"):
        text = path.read_text()
        if "walk(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and "walk" == getattr(node.func, "id", ""):
                page, *titles = (
                    each.value for each in node.args if isinstance(each, ast.Constant)
                )
                yield from ((page, title) for title in titles)


def test_every_command_is_run():
    """Each console block of each page is run by a test, or cannot be run here."""
    shown = {(page, title) for page in pages() for title in blocks(page)}
    run = list(walked())

    assert shown == {*run, *NOT_RUN}
    assert len(run) + len(NOT_RUN) == len(shown)
