"""`hsm-kms rotation`: what it refuses to begin, and that it then changes nothing."""

from __future__ import annotations

import pytest

from hsm_kms.cli.rotation.journal import FILE, JournalFile, Rotation, StepRecord
from hsm_kms.cli.rotation.steps import STEP_NAMES
from tests.cli.every_command import SHARED, written_status
from tests.cli.keys_rig import Keys, stored_value
from tests.harness.command_line import Ended
from tests.harness.etcd_server import EtcdServer


@pytest.fixture
def node(make_plugin, hsm):
    """Provide a server on a token that all nodes share, with one key."""
    plugin = make_plugin(hsm, **SHARED).start()
    plugin.wait_healthz("ok")
    plugin.status()
    return plugin


@pytest.fixture
def etcd(node):
    """Provide an etcd with one object under the key."""
    with EtcdServer({b"/registry/secrets/d/one": stored_value(node)}) as server:
        yield server


@pytest.fixture
def start(node, etcd):
    """Run `rotation start`, with more options."""
    named = ("--node", f"127.0.0.1:{node.http_port()}", "--endpoints", etcd.endpoint)

    def run(*arguments: str) -> Ended:
        return Ended.of(node.cli("rotation", "start", *named, *arguments))

    return run


def unchanged(node):
    """Return True if there is one key still, and no journal."""
    states = list(Keys(node).states().values())
    return ["current"] == states and not (node.state_dir / FILE).exists()


def test_usage(node, start):
    """Nodes, a live etcd and --yes must be given before anything is looked at."""
    for arguments, cause in (
        (("start", "--yes"), "no etcd endpoint: give --endpoints"),
        (("start", "--yes", "--endpoints", "x:1"), "no node: name every node"),
        (("start", "--from-json", "-"), "do not show what is stored now"),
        (("start", "--with", "magic"), "'magic' is not one of 'migrate'"),
        (("start", "--node", "a b"), "is not HOST, HOST:PORT or FILE"),
        (("resume",), "no etcd endpoint"),
    ):
        ended = Ended.of(node.cli("rotation", *arguments))
        assert (2, "") == (ended.code, ended.out)
        assert cause in ended.err
    assert "stdin is not a terminal, so give --yes" in start().err
    assert unchanged(node)


def test_refusals(node, start, etcd):
    """What would keep the rotation from its end is said before the first change."""
    too_soon = start("--yes", "--activate-in", "30s")
    assert "in less than 2m some nodes may not have found the key" in too_soon.err
    no_key = start("--yes", "--with", "elsewhere", "--old", "a" * 26)
    assert f"no key {'a' * 26} is on the token" in no_key.err
    no_kubectl = start("--yes", "--kubectl", "/no/such/kubectl")
    assert "the program '/no/such/kubectl' was not found" in no_kubectl.err
    no_node = start("--yes", "--with", "elsewhere", "--node", "127.0.0.1:1")
    assert "127.0.0.1:1: the metrics cannot be read" in no_node.err
    etcd.knobs.objects.clear()
    no_object = start("--yes", "--with", "elsewhere")
    assert "no object below '/registry/'" in no_object.err
    nothing = Ended.of(node.cli("rotation", "resume", "--endpoints", etcd.endpoint))
    assert "there is no rotation to resume: " in nothing.err
    assert unchanged(node)


def test_tokens_of_their_own(node, start):
    """Nodes with separate tokens are led to the page, as by `keys rotate`."""
    node.config["token"]["shared"] = False
    node.write_config()
    refused = start("--yes")

    assert 1 == refused.code
    assert "nodes with separate tokens do not find the new key" in refused.err
    assert "(docs/rotation.md)" in refused.err


def test_dry_run(node, start):
    """--dry-run says for each step what is seen, and what would be done."""
    shown = start("--dry-run", "--with", "elsewhere")
    [old] = Keys(node).states()

    assert 0 == shown.code, shown.err
    lines = shown.out.splitlines()
    assert list(STEP_NAMES) == [each.split()[2] for each in lines[:-1]]
    assert (
        "to do  generate    a key is generated, and becomes current 10 min later"
        == (lines[0])
    )
    assert f"1 of 1 objects in {'127.0.0.1'}" in lines[3]
    assert f"stored under {old} (secrets); you run `hsm-kms migrate`" in lines[3]
    assert "nothing was changed" == lines[-1]
    assert unchanged(node)


def test_another_node(node, etcd, directory):
    """The three minutes begin again for a node that is named only when resuming."""
    [key] = Keys(node).states()
    nodes = [str(directory / f"{name}.json") for name in ("one", "two")]
    for each in nodes:
        written_status(node, directory).rename(each)
    journal = JournalFile(node.state_dir / FILE)
    long_ago = "2026-01-01T00:00:00Z"
    switched = {name: StepRecord(long_ago, long_ago) for name in STEP_NAMES[:2]}
    rotation = Rotation(
        began=long_ago,
        old_key="a" * 26,
        new_key=key,
        nodes=nodes[:1],
        method="elsewhere",
        resources=["secrets"],
        activate_in=600.0,
        steps=switched,
    )
    with journal.alone():
        journal.save(rotation)

    for named, settled in ((nodes[:1], "done"), (nodes, "to do"), ([], "done")):
        options = [word for each in named for word in ("--node", each)]
        shown = Ended.of(
            node.cli(
                *("rotation", "resume", "--dry-run", "--endpoints", etcd.endpoint),
                *options,
            )
        )
        assert 0 == shown.code, shown.err
        _, switch, settle, *_ = shown.out.splitlines()
        assert switch.startswith("done   switch "), shown.out
        assert settle.startswith(f"{settled:7}settle "), shown.out
