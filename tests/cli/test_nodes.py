"""`hsm-kms nodes`: the keys of several nodes compared, from real servers."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from hsm_kms.http.nodes import scrape
from hsm_kms.log import key_id_hash
from tests.cli.every_command import SHARED
from tests.harness.command_line import run
from tests.harness.wait import patient, wait_for

HOSTILE = b"""\
hsm_kms_build_info{version="\x1b[2J"} 1
hsm_kms_health{state="ok"} 1
"""
LISTEN = {"http": {"listen": "127.0.0.1:0"}}


@pytest.fixture
def pair(make_plugin, hsm):
    """Provide two healthy servers on one token, and the API servers have asked both."""
    made = [make_plugin(hsm, **SHARED, **LISTEN) for _ in range(2)]
    for each in made:
        each.start()
    for each in made:
        each.wait_healthz("ok")
        each.status()
    return made


def address(plugin):
    """Return host and port of a server's metrics."""
    return f"127.0.0.1:{plugin.http_port()}"


def saved(plugin, directory):
    """Save what `status -o json` prints; return the file."""
    file = directory / f"{plugin.directory.name}.json"
    file.write_text(plugin.cli("status", "-o", "json").stdout)
    return file


def rotate(plugin):
    """Make a key that becomes current later; return its key_id."""
    done = plugin.cli("keys", "rotate", "-o", "json")
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)["key_id"]


def switch(plugin, key_id):
    """Name a key in the configuration, and wait until Status announces it.

    The metrics, which may be a second old, must show it too.
    """
    plugin.config["keys"] = {"current": key_id}
    plugin.write_config()
    wait_for(lambda: plugin.status().key_id == key_id)
    node, wanted = ("127.0.0.1", plugin.http_port()), key_id_hash(key_id)
    wait_for(lambda: scrape(*node, patient()).current == wanted)


def test_rotation(pair, tmp_path):
    """A node that has not switched is behind, until it has; files tell the same."""
    first, second = pair
    before = run("nodes", address(first), address(second))
    assert (0, "") == (before.returncode, before.stderr)
    assert before.stdout.endswith("✓ all 2 nodes agree\n")

    key_id = rotate(first)
    switch(first, key_id)
    nodes = (address(first), saved(second, tmp_path))
    differ = run("nodes", *nodes)
    name = key_id_hash(key_id)[:19]

    assert 1 == differ.returncode
    assert f"✗ {nodes[1]}: the node is behind: {name} is " in differ.stdout
    assert address(first) not in differ.stdout.partition("✗")[2]

    switch(second, key_id)
    after = run("nodes", address(first), address(second), "-o", "json", "--key", key_id)
    answer = json.loads(after.stdout)
    assert (0, True) == (after.returncode, answer["agree"])
    assert {key_id_hash(key_id)} == {each["key_id_hash"] for each in answer["nodes"]}


def test_unreadable_nodes(shared_server, tmp_path):
    """A node that cannot be read fails, with cause and cure; the others are shown."""
    page = tmp_path / "page.json"
    page.write_text("[]")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    shown = run(
        "nodes",
        saved(shared_server, tmp_path),
        "127.0.0.1:1",
        page,
        deep,
        "/no/such/file",
    )

    assert 1 == shown.returncode
    assert 2 == len(shown.stdout.partition("✗")[0].splitlines())
    for failure in (
        "✗ 127.0.0.1:1: the metrics cannot be read: Connection refused",
        f"✗ {page}: this is not the output of `hsm-kms status -o json`",
        f"✗ {deep}: this is not the output of `hsm-kms status -o json`",
        "✗ /no/such/file: the file cannot be read: No such file",
    ):
        assert failure in shown.stdout


def test_key_that_no_node_holds(shared_server, tmp_path):
    """With --key, a node must hold this key."""
    shown = run("nodes", saved(shared_server, tmp_path), "--key", "a" * 26)

    assert 1 == shown.returncode
    assert f"the node does not hold {key_id_hash('a' * 26)[:19]}" in shown.stdout


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":9462",
        "host:",
        "host:0",
        "host:x",
        pytest.param("host:" + "9" * 5000, id="too many digits"),
        "host:99999",
        ".dev",
        "a..b",
        "a b",
    ],
)
def test_bad_names(name):
    """What names no node is refused."""
    refused = run("nodes", name)

    assert (2, "") == (refused.returncode, refused.stdout)
    assert "is not HOST, HOST:PORT or FILE" in refused.stderr


@pytest.mark.parametrize(
    ("page", "cause"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nup 1\n", "the answer is not that of hsm-kms"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "the answer to GET /metrics is 404"),
        (b"SSH-2.0-OpenSSH\r\n", "the metrics cannot be read: SSH-2.0-OpenSSH\n"),
        (b"\x1b[2J\r\n", "the metrics cannot be read: \\x1b[2J\n"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + HOSTILE, "the answer is not that of hsm-kms"),
    ],
)
def test_another_program(page, cause):
    """Another program on the port is not taken for hsm-kms."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_once, args=(listener, page))
        thread.start()
        shown = run("nodes", f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()

    assert 1 == shown.returncode
    assert cause in shown.stdout


def answer_once(listener, page):
    """Answer one request with these bytes."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(page)
