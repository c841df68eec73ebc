"""Name one run of every command, for what must hold of them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hsm_kms.cli import cli
from hsm_kms.cli.rotation.journal import JournalFile, Rotation
from tests.cli.decrypting import KEY, v2_with
from tests.cli.etcd_cli import OBJECTS
from tests.cli.migrating import Migrating
from tests.harness.etcd_samples import written
from tests.harness.etcd_server import EtcdServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.plugin import Plugin

SHARED = {"token": {"shared": True}}


def all_commands(command=cli, path=()):
    """Yield each command and group after its path, such as ("keys", "list")."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from all_commands(inner, (*path, name))


GROUPS_TOO = dict(all_commands())
COMMANDS = {
    path: each for path, each in GROUPS_TOO.items() if not isinstance(each, click.Group)
}
LEAVES = set(COMMANDS)
A_KEY_ID = "a" * 26

# Every command that uses the token, with what it cannot do without.
USE_THE_TOKEN = {
    ("bench",): ("--yes",),
    ("check",): (),
    ("keys", "cancel"): (A_KEY_ID, "--yes"),
    ("keys", "destroy"): (
        A_KEY_ID,
        "--confirm",
        A_KEY_ID,
        "--endpoints",
        "localhost:1",
    ),
    ("keys", "generate"): (),
    ("keys", "list"): (),
    ("keys", "retire"): (A_KEY_ID, "--yes", "--without-scan"),
    ("keys", "rotate"): (),
    ("rotation", "start"): (
        *("--node", "localhost:1", "--endpoints", "localhost:1", "--yes"),
    ),
    ("token", "list"): (),
    ("token", "retry-pin"): (),
}


def every_command(
    node: Plugin, server: Plugin, directory: Path
) -> Iterator[tuple[str, ...]]:
    """Yield the command lines that print a result, in an order in which each can.

    `serve`, which prints none, is not among them.

    Args:
        node: Configuration with a token that holds a key, and is shared.
        server: A server that runs with the same key.
        directory: For files.
    """
    config = ("--config", str(node.config_file))
    dump = ("--from-json", str(written(directory / "dump.json", OBJECTS)))
    secret = written(directory / "secret.json", {KEY: v2_with(server)})
    value = ("--from-json", str(secret))
    kubectl = ("--kubectl", str(Migrating(directory).kubectl))
    yield ("status", "--socket", str(server.socket))
    yield ("probe", "--socket", str(server.socket))
    here = ("--cluster", "none", "--module", "/m.so", "--yes")
    yield ("init", str(directory / "init"), *here)
    yield ("nodes", str(written_status(server, directory)))
    yield ("config", "show", *config)
    yield ("config", "schema")
    yield ("completion", "bash")
    yield ("check", *config)
    yield ("bench", "--yes", "--time", "200ms", "--rate", "50", *config)
    yield ("token", "list", *config)
    yield ("token", "retry-pin", *config)
    yield ("etcd", "decrypt", KEY, "--reveal", *value, *config)
    yield ("keys", "list", *config)
    yield from _rotation(node, server, directory)
    yield ("keys", "rotate", *config)
    key_ids = _key_ids(node)  # one, if nobody has run what was yielded
    old, new = key_ids[0], key_ids[-1]
    yield ("keys", "cancel", new, "--yes", *config)
    yield ("keys", "generate", "--another", *config)
    yield ("keys", "retire", old, "--without-scan", "--yes", *config)
    yield ("etcd", "scan", *dump)
    yield ("etcd", "show", next(iter(OBJECTS)), *dump)
    yield ("etcd", "verify", *dump, *config)
    yield ("migrate", *kubectl)
    # Nothing to destroy is retired for 24 hours: this one prints an error.
    etcd = ("--endpoints", "127.0.0.1:1", "--confirm", old)
    yield ("keys", "destroy", old, *etcd, *config)


def _rotation(
    node: Plugin, server: Plugin, directory: Path
) -> Iterator[tuple[str, ...]]:
    config = ("--config", str(node.config_file))
    named = ("--node", str(written_status(server, directory)), "--with", "elsewhere")
    journal = ("--journal", str(directory / "rotation.json"))
    begun = Rotation(
        began="2026-11-21T13:44:47Z",
        old_key=_key_ids(node)[0],
        nodes=[named[1]],
        method=named[3],
        resources=["secrets"],
        activate_in=600.0,
    )
    JournalFile(Path(journal[1])).save(begun)
    with EtcdServer({b"/registry/x": b"k8s"}) as etcd:
        dry = ("--dry-run", "--endpoints", etcd.endpoint, *journal, *config)
        yield ("rotation", "start", *named, *dry)
        yield ("rotation", "resume", *dry)
    begun.finished = begun.began
    JournalFile(Path(journal[1])).save(begun)
    yield ("rotation", "status", *journal, *config)


def written_status(server: Plugin, directory: Path) -> Path:
    """Save what `status -o json` says of a server; return the file."""
    file = directory / "node.json"
    shown = server.cli("status", "--config", server.config_file, "-o", "json")
    file.write_text(shown.stdout)
    return file


def _key_ids(node: Plugin) -> list[str]:
    listed = json.loads(node.cli("keys", "list", "-o", "json").stdout)
    return [key["key_id"] for key in listed]
