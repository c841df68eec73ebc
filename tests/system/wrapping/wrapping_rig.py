"""A node in this process, on a real token behind the shim: a server but its sockets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from hsm_kms.health import monitor
from hsm_kms.ipc.messages import GenerateKey, KeyPage
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys import pending
from hsm_kms.keys.key_id import make_cka_id
from hsm_kms.server.config_file import ConfigFile
from hsm_kms.server.engine import Lasting
from hsm_kms.server.reload import Reload
from hsm_kms.server.systemd import Systemd
from hsm_kms.server.takeover import InForce, Pace
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token import restarts
from hsm_kms.token.process import Worker
from hsm_kms.wrapping import local_lifecycle, single_flight
from hsm_kms.wrapping.kek_cache import MAX_OPENED, KekCache
from hsm_kms.wrapping.nonce_budget import NonceBudget
from hsm_kms.wrapping.record import Kind, Record
from tests.harness.one_worker import configure, gate
from tests.harness.token_keys import LABEL
from tests.harness.wait import SECONDS, quiet, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from hsm_kms.health.state import HealthState
    from hsm_kms.server.engine import Engine
    from hsm_kms.wrapping.wrapper import Sealed, Unsealed
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim
    from tests.harness.softhsm import SoftHsm

DOWN: Final = "* rv=0x30"  # CKR_DEVICE_ERROR, whatever is asked
DEK: Final = b"d" * 32
SELDOM: Final = {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}
"""Looks only where something has happened."""
NESTED: Final = frozenset({Kind.LOCAL_KEK_BY_TOKEN})

PACE: Final = Pace(drain=0.05)
_QUICK: Final = (
    (monitor, "RETRY_SECONDS", 0.1),
    (monitor, "AT_MOST_EVERY_SECONDS", 0.02),
    (restarts, "LONGEST_SECONDS", 0.2),
    (local_lifecycle, "RETRY_SECONDS", 0.1),
    # Keys that are made here have activation times in the past, or soon; on a slow
    # machine those pass before the key is seen.
    (pending, "DOUBT_SECONDS", 1e9),
    (pending, "LATE_SECONDS", 0.0),
    (single_flight, "REMEMBER_SECONDS", 1e9),  # a slow machine forgets nothing
)


class WrappingNode:
    """Engines and reloads as in the server, and what Status announces.

    Args:
        plugin: The configuration, whose process is not started.
        most: How many opened local KEKs it keeps.
        limits: Of the nonce budget.
    """

    def __init__(
        self, plugin: Plugin, *, most: int = MAX_OPENED, **limits: int
    ) -> None:
        self.plugin = plugin
        file = ConfigFile(plugin.config_file)
        config = file.load()
        state = StateDir(config.state_dir).open()
        self.lasting = Lasting(
            state=state,
            budget=NonceBudget(state, **limits),
            opened=KekCache(most),
        )
        self.in_force = InForce(config, self.lasting, PACE)
        self.reloads = Reload(file, self.in_force, Systemd())

    @property
    def engine(self) -> Engine:
        """The engine in force."""
        return self.in_force.engine

    def announce(self) -> HealthState:
        """Answer a Status, as the API server asks for it."""
        return self.in_force.announce()

    def look(self) -> HealthState:
        """Return the state that a Status would give."""
        return self.in_force.look()

    def calls(self, operation: str) -> int:
        """Requests that were sent to the token; no canary is among them."""
        return self.lasting.counts.calls[operation]

    def created(self, result: str = "ok") -> int:
        """Local KEKs that were made, or could not be."""
        return self.lasting.counts.created[result]

    async def until(
        self, condition: Callable[[], Any], seconds: float = SECONDS
    ) -> None:
        """Wait until the condition is true."""
        await until(condition, seconds)

    async def well(self) -> WrappingNode:
        """Wait until the token is well, and every local KEK that is wanted is there."""
        await self.until(lambda: self.engine.well)
        return self

    async def state(self, state: str) -> HealthState:
        """Wait until Status would give this state."""
        await self.until(lambda: self.look().state == state)
        return self.look()

    async def reload(self, **sections: Any) -> None:
        """Change sections of the configuration, and read it as the server does."""
        for name, section in sections.items():
            self.plugin.merge(name, section)
        self.plugin.write_config()
        before = self.engine.config
        applied = await self.reloads.once()
        assert applied or self.reloads.rejected, f"this is in force: {before}"
        await self.in_force.handed_over()

    async def wrapping(self, v2: str, v1: str | None = None) -> None:
        """Change who wraps."""
        apis = {"v2": v2, "v1": v1 or v2}
        await self.reload(
            apis={
                name: {"enabled": True, "wrapping": how} for name, how in apis.items()
            }
        )

    async def wrap(
        self, plaintext: bytes = DEK, *, api: str = "v2", seconds: float | None = None
    ) -> Sealed:
        """Encrypt, as a client with so much patience."""
        wrapper = self.in_force.v2 if api == "v2" else self.in_force.v1
        return await wrapper.wrap(plaintext, deadline=deadline(seconds))

    async def unwrap(
        self, sealed: Sealed, *, api: str = "v2", seconds: float | None = None
    ) -> Unsealed:
        """Decrypt, as a client with so much patience."""
        wrapper = self.in_force.v2 if api == "v2" else self.in_force.v1
        key_id = sealed.key_id if api == "v2" else None
        return await wrapper.unwrap(
            sealed.ciphertext, key_id=key_id, deadline=deadline(seconds)
        )

    async def quiet(self, shim: Shim) -> None:
        """Wait until nothing more is asked of the token; its looks must be rare."""
        await quiet(lambda: shim.calls("C_Encrypt"))

    async def close(self) -> None:
        """Leave nothing running."""
        await self.in_force.close()
        await self.lasting.budget.close()


def deadline(seconds: float | None) -> float | None:
    """In the loop's time."""
    if seconds is None:
        return None
    return asyncio.get_running_loop().time() + seconds


@contextlib.asynccontextmanager
async def running(plugin: Plugin, **limits: int) -> AsyncIterator[WrappingNode]:
    """A node that has just started; limits as for `WrappingNode`."""
    node = WrappingNode(plugin, **limits)
    node.engine.start()
    try:
        yield node
    finally:
        await node.close()


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Shorten the pauses of a node, and bind it to no other time."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, seconds in _QUICK:
            patch.setattr(module, name, seconds)
        yield


@contextlib.asynccontextmanager
async def nodes(
    make_plugin: Callable[..., Plugin], hsm: SoftHsm, shim: Shim
) -> AsyncIterator[Callable[..., Awaitable[WrappingNode]]]:
    """Makes quick nodes on one token, well; all are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(quick())

        async def make(
            wrapping: str = "software",
            limits: Mapping[str, int] | None = None,
            **sections: Any,
        ) -> WrappingNode:
            plugin = on_shim(make_plugin, hsm, shim, wrapping, **sections)
            node = await stack.enter_async_context(running(plugin, **(limits or {})))
            return await node.well()

        yield make


def on_shim(
    make_plugin: Callable[..., Plugin],
    hsm: SoftHsm,
    shim: Shim,
    wrapping: str = "software",
    **sections: Any,
) -> Plugin:
    """A configuration with one small worker behind the shim, and patience with it."""
    token = {
        "module": str(shim.module),
        "env": {**hsm.env, **shim.env},
        "shared": True,
        "workers": 1,
        "sessions_per_worker": 2,
        "session_wait": "10s",
        "call_timeout": "10s",
        "start_timeout": "20s",
    }
    given: dict[str, Any] = {
        "apis": {
            "v2": {"enabled": True, "wrapping": wrapping},
            "v1": {"enabled": True, "wrapping": wrapping},
        },
        "health": {"interval": "200ms"},
        "keys": {"discover": "200ms"},
    }
    token |= sections.pop("token", {})
    return make_plugin(hsm, token=token, **(given | sections))


def kind(sealed: Sealed) -> Kind:
    """Which kind of record it is."""
    return Record.decode(sealed.ciphertext).header.kind


def nested(sealed: Sealed) -> bytes:
    """The local KEK that a record carries."""
    return Record.decode(sealed.ciphertext).header.nested


class Maker:
    """Makes keys on a token from a process of its own, as `keys generate` does.

    Args:
        hsm: The token.
        pin_file: Its PIN.
        directory: For a state directory.
    """

    def __init__(self, hsm: SoftHsm, pin_file: Path, directory: Path) -> None:
        self._hsm = hsm
        self._gate = gate(pin_file, directory)

    async def make(self, activation: float) -> None:
        """A KEK that becomes current at this time, in seconds since the Unix epoch."""
        worker = await Worker.spawn(0, self._hsm.env)
        try:
            await worker.configure(configure(read_write=True))
            await self._gate.login(worker)
            ref = KeyRef(LABEL, make_cka_id(int(activation)))
            made = await worker.ask(GenerateKey(ref=ref), SECONDS)
            assert isinstance(made, KeyPage)
            assert made.keys
        finally:
            await worker.leave()
