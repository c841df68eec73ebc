"""Wait for the nodes: until they use the new key, and until they drop the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.cli.keys.journal import seconds_of
from hsm_kms.cli.rotation.steps import Seen, waiting
from hsm_kms.clock import now, when
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import count_of
from hsm_kms.log import key_id_hash

if TYPE_CHECKING:
    from hsm_kms.cli.rotation.world import World

SETTLE_SECONDS: Final = 180.0
"""Within this time of a node's switch, each of its API servers has asked for Status,
or has stopped to write: kube-apiserver believes a Status for three minutes."""


class Switch:
    """Wait until every node uses the new key.

    Args:
        world: What is looked at.
    """

    name = "switch"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Compare the nodes."""
        rotation = self._world.rotation
        new, every = rotation.new_key, count_of(len(rotation.nodes), "node")
        if new is None:
            return Seen(False, f"{every} will use the new key")
        compared = self._world.nodes(new)
        wanted = key_id_hash(new)
        using = [
            name
            for name, state in compared.readable().items()
            if state.current == wanted
        ]
        if len(using) == len(rotation.nodes) and not compared.failures:
            who = f"all {every} use" if len(using) > 1 else "the only node uses"
            return Seen(True, f"{who} {new}")
        text = f"{len(using)} of {every} use {new}"
        if compared.failures:
            return Seen(False, f"{text}; {compared.failures[0].text}")
        return Seen(False, f"{text}, which all of them hold{self._comes()}")

    def _comes(self) -> str:
        at = self._world.rotation.activation
        return f"; it becomes current at {when(at)}" if at and at > now() else ""

    def require_readable(self) -> None:
        """Refuse to begin while a node cannot be read.

        Raises:
            HsmKmsError: A node cannot be read.
        """
        for name, state in self._world.nodes(None).states.items():
            if isinstance(state, HsmKmsError):
                raise HsmKmsError(f"{name}: {state}", hint=state.hint)

    def do(self) -> Seen:
        """Wait; the time until the key becomes current does not count."""
        begins = max(now(), float(self._world.rotation.activation or 0))
        return waiting(self.look, begins + self._world.means.wait)


class Settle:
    """Wait until every API server has noticed the switch of its node.

    Args:
        world: What is looked at.
    """

    name = "settle"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Find out how long every node has used the new key."""
        until = self._until()
        if until is None:
            return Seen(False, "3 min pass, in which each API server asks for Status")
        if now() >= until:
            return Seen(True, "each API server has had time to ask for Status")
        return Seen(False, f"until {when(until)} each API server asks for Status")

    def _until(self) -> float | None:
        switched = self._world.rotation.done_step(Switch.name)
        at = seconds_of(switched[0]) if switched is not None else None
        return None if at is None else at + SETTLE_SECONDS

    def do(self) -> Seen:
        """Wait."""
        return waiting(self.look, float("inf"))


class Drop:
    """Wait until no node decrypts with the old key.

    Args:
        world: What is looked at.
    """

    name = "drop"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Ask each node what the old key is to it."""
        old = self._world.rotation.old_key
        hashed = key_id_hash(old)
        for name, state in self._world.nodes(None).states.items():
            if isinstance(state, HsmKmsError):
                return Seen(False, f"{name}: {state}")
            if not state.keys:  # as of a server that has just started
                return Seen(False, f"{name} has not read its keys yet")
            held = state.keys.get(hashed, "retired")
            if held != "retired":
                return Seen(False, f"{name} still holds {old}, as {held}")
        return Seen(True, f"no node decrypts with {old}")

    def do(self) -> Seen:
        """Wait."""
        return waiting(self.look, now() + self._world.means.wait)
