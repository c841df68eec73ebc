"""Trial, in force, leaving: let one engine follow another.

The new engine takes over when it is well; or at once, if the old one is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from hsm_kms import log
from hsm_kms.errors import HsmKmsError
from hsm_kms.log import get_logger
from hsm_kms.server.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.config.schema import Config
    from hsm_kms.health.state import HealthState
    from hsm_kms.server.engine import Lasting
    from hsm_kms.wrapping.wrapper import DekWrapper, Sealed, Unsealed

DRAIN_SECONDS: Final = 1.5  # for calls under way, of the 3 s that a stop may take

ANNOUNCE_SECONDS: Final = 75.0  # the API server asks at least every 60 s
POLL_SECONDS: Final = 0.05

_log = get_logger(__name__)


class InForce:
    """Hold the engine in force, and let another one follow it.

    Args:
        config: The configuration to begin with.
        lasting: What outlives an engine.

    Attributes:
        engine: The engine in force.
        v2: Wraps and unwraps for v2.
        v1: Wraps and unwraps for v1.
    """

    def __init__(self, config: Config, lasting: Lasting) -> None:
        self._lasting = lasting
        self.engine = self._announced = Engine(config, lasting)
        self._announcing = asyncio.Event()
        # v2 encrypts with the key that Status gave last; v1 announces nothing.
        self.v2 = _Current(
            seal=lambda: self._announced.v2, unseal=lambda: self.engine.v2
        )
        self.v1 = _Current(seal=lambda: self.engine.v1, unseal=lambda: self.engine.v1)

    def announce(self) -> HealthState:
        """See `Health.announce`; v2 encrypts with the engine that announced last."""
        self._announced = self.engine
        self._announcing.set()
        return self.engine.health.announce()

    def look(self) -> HealthState:
        """See `Health.look`."""
        return self.engine.health.look()

    def adjust(self, config: Config) -> None:
        """Go on with a configuration that needs no other engine."""
        self.engine.adjust(config)
        self._now_in_force(config)

    def _now_in_force(self, config: Config) -> None:
        log.configure(config.log.level, config.log.format)
        _log.info("configuration applied")

    async def take_over(self, config: Config) -> None:
        """Replace the engine, unless the new one would serve worse than the old one."""
        old, new = self.engine, Engine(config, self._lasting)
        old.keys.freeze()  # the new one begins with what is remembered now
        better = False
        try:
            better = await self._is_better(old, new)
        finally:  # also after a bug, or when the server stops meanwhile
            if not better:
                old.keys.unfreeze()
                await new.close()
        if not better:
            return
        self._announcing.clear()
        self.engine = new
        self._now_in_force(config)
        try:
            await self._let_go(old, new)
        finally:
            self._announced = new
            await old.close()

    async def _is_better(self, old: Engine, new: Engine) -> bool:
        """Start the new engine; return True if it should replace the old one."""
        new.start()
        seconds = new.config.token.start_timeout
        trouble = await wait_until_well(new, seconds)
        serves = old.health.look().state == "ok" or old.in_software
        if trouble is None or not serves:
            return True
        _log.error(
            "configuration rejected: the token would become unavailable",
            error=trouble.sentence,
        )
        return False

    async def _let_go(self, old: Engine, new: Engine) -> None:
        """Wait for the calls on the old engine, and for Status to name the new key."""
        if old.keys.announced == new.keys.key_id:
            new.keys.announce(new.keys.key_id)
        elif old.keys.announced:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    await self._announcing.wait()
        await asyncio.sleep(DRAIN_SECONDS)


class _Current:
    """Look up the current wrapper for each request, because a reload replaces it.

    Args:
        seal: The wrapper to encrypt with.
        unseal: The wrapper to decrypt with.
    """

    def __init__(
        self, *, seal: Callable[[], DekWrapper], unseal: Callable[[], DekWrapper]
    ) -> None:
        self._seal = seal
        self._unseal = unseal

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """See `Wrapper.wrap`."""
        return await self._seal().wrap(plaintext, deadline=deadline)

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """See `Wrapper.unwrap`."""
        return await self._unseal().unwrap(ciphertext, key_id=key_id, deadline=deadline)


async def wait_until_well(engine: Engine, seconds: float) -> HsmKmsError | None:
    """Wait for an engine; why it did not become well, or None if it did.

    Args:
        engine: Started.
        seconds: Longest wait.
    """
    try:
        async with asyncio.timeout(seconds):
            while not engine.well:
                if engine.workers.last_error is not None:
                    return engine.workers.last_error
                if engine.keys.ring is not None and engine.keys.ring.fault is not None:
                    return engine.keys.ring.fault
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return HsmKmsError(engine.health.detail)
    return None
