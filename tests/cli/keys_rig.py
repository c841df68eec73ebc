"""Run the `keys` commands on one token."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsm_kms.ipc.messages import Relabel
from hsm_kms.ipc.values import KeyRef
from hsm_kms.token.process import Worker
from tests.harness.command_line import Ended
from tests.harness.one_worker import configure, gate
from tests.harness.softhsm import PIN
from tests.harness.token_keys import LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.ipc.messages import Reply, Request
    from tests.harness.plugin import Plugin


class Keys:
    """Run the commands with one configuration.

    Attributes:
        old: The first key_id on a token with two.
        new: The second one.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.old = self.new = ""

    def use(self, old: str, new: str) -> None:
        """Name the second of two keys as the current one."""
        self.old, self.new = old, new
        self.configure("keys", current=new)

    def configure(self, section: str, **values: Any) -> None:
        """Change the configuration."""
        self.plugin.config[section] |= values
        self.plugin.write_config()

    def run(self, command: str, *arguments: str) -> Ended:
        """Run `hsm-kms keys COMMAND` without a terminal."""
        ended = Ended.of(self.plugin.cli("keys", command, *arguments))
        assert PIN not in ended.out + ended.err
        return ended

    def json(self, command: str, *arguments: str) -> Any:
        """Run a command that must succeed, and return its JSON."""
        ended = self.run(command, *arguments, "-o", "json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    def generate(self, *arguments: str) -> str:
        """Run `keys generate`, and return the key_id."""
        return str(self.json("generate", *arguments)["key_id"])

    def rotate(self, *arguments: str) -> str:
        """Run `keys rotate`, and return the key_id."""
        return str(self.json("rotate", *arguments)["key_id"])

    def states(self) -> dict[str, str]:
        """Return the state of each key by its key_id, or "-" if it has none."""
        return {key["key_id"] or "-": key["state"] for key in self.json("list")}

    def refusal(self, command: str, *arguments: str, code: int = 1) -> str:
        """Return the error of a command that must fail."""
        ended = self.run(command, *arguments)
        assert (code, "") == (ended.code, ended.out), ended
        assert "Traceback" not in ended.err
        return ended.err


def ask_worker(plugin: Plugin, requests: Sequence[Request]) -> list[Reply]:
    """Return what a worker with a read-write session answers."""
    pin_file = Path(plugin.config["token"]["pin_file"])

    async def ask() -> list[Reply]:
        worker = await Worker.spawn(0, plugin.config["token"]["env"])
        try:
            module = plugin.config["token"]["module"]
            await worker.configure(configure(module=module, read_write=True))
            await gate(pin_file, plugin.directory).login(worker)
            return [await worker.ask(request, 10) for request in requests]
        finally:
            await worker.leave()

    return asyncio.run(ask())


def retired_long_ago(keys: Keys, key_id: str) -> None:
    """Set the time of `keys retire` back to January."""
    [key] = [key for key in keys.json("list") if key["key_id"] == key_id]
    ref = KeyRef(key["label"], bytes.fromhex(key["cka_id"]))
    label = f"{LABEL}/retired/20260101T000000Z"
    both = [Relabel(ref=ref, label=label)]
    if key["also"]:
        both.append(Relabel(ref=ref, label=label, partner=True))
    ask_worker(keys.plugin, both)


def stored_value(plugin: Plugin) -> bytes:
    """Return one object as an API server stores it with KMS v1."""
    wrapped = plugin.v1_encrypt(b"d" * 32)
    length = len(wrapped).to_bytes(2, "big")
    return b"k8s:enc:kms:v1:hsm-kms:" + length + wrapped + bytes(40)


def etcd_json(path: Path, *values: bytes) -> tuple[str, str]:
    """Write a file as `etcdctl get --prefix / -w json` does, and return its options."""
    pairs = [
        {
            "key": base64.b64encode(b"/registry/secrets/d/%d" % number).decode(),
            "value": base64.b64encode(value).decode(),
        }
        for number, value in enumerate(values)
    ]
    header = {"revision": 9}
    path.write_text(json.dumps({"header": header, "kvs": pairs, "count": len(pairs)}))
    return "--from-json", str(path)
