"""Let one engine follow another: trial, in force, leaving.

1. Trial: the new engine runs beside the old one and answers nobody. It comes into force
   when it is well, or, at the end of its trial, if the old one does not serve either.
2. A trial that fails leaves nothing behind: no worker, no file, no local KEK fewer.
3. In force: at each moment one engine answers Decrypt, v1 and probes, writes the state
   directory and switches keys.
4. Leaving: the old engine finishes calls under way and encrypts for v2 until Status has
   announced the new engine's key. The next trial begins only after that, so the token
   never has the sessions of more than two engines.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms import clock
from hsm_kms.errors import HsmKmsError, PinRejectedError
from hsm_kms.log import get_logger
from hsm_kms.server.engine import Engine
from hsm_kms.tasks import cancel_and_wait, complete

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Set how long the old engine stays after a take-over.

    Args:
        drain: Seconds for calls under way on the old engine.
        announce: Seconds to wait for a Status that announces the new key.
    """

    drain: float = DRAIN_SECONDS
    announce: float = ANNOUNCE_SECONDS


class InForce:
    """Hold the engine in force, and let another one follow it.

    Args:
        config: The configuration to begin with.
        lasting: What outlives an engine.
        pace: How long a replaced engine stays.

    Attributes:
        engine: The engine in force.
        announced_when: When the API server last asked for Status, in seconds since the
            Unix epoch; None if it never did.
        v2: Wraps and unwraps for v2.
        v1: Wraps and unwraps for v1.
    """

    def __init__(
        self, config: Config, lasting: Lasting, pace: Pace | None = None
    ) -> None:
        self._lasting = lasting
        self._pace = pace or Pace()
        self.engine = self._announced = Engine(config, lasting, on_trial=False)
        self.announced_when: float | None = None
        self._announcing = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None
        # v2 encrypts with the key that Status gave last; v1 announces nothing.
        self.v2 = _Current(
            seal=lambda: self._announced.v2, unseal=lambda: self.engine.v2
        )
        self.v1 = _Current(seal=lambda: self.engine.v1, unseal=lambda: self.engine.v1)

    @property
    def config(self) -> Config:
        """Return the configuration in force."""
        return self.engine.config

    def announce(self) -> HealthState:
        """See `Health.announce`; v2 encrypts with the engine that announced last."""
        self._announced = self.engine
        self.announced_when = clock.now()
        self._announcing.set()
        return self.engine.health.announce()

    def look(self) -> HealthState:
        """See `Health.look`."""
        return self.engine.health.look()

    def adjust(self, config: Config) -> None:
        """Bring a configuration into force that needs no other engine.

        Args:
            config: One that `reload.plan` finds adjustable.
        """
        for engine in {self.engine, self._announced}:  # v2 may still use the old one
            engine.adjust(config)

    async def take_over(self, config: Config) -> HsmKmsError | None:
        """Bring a configuration into force that needs another engine.

        Args:
            config: The configuration.

        Returns:
            None if the configuration is in force now; otherwise why it is not.
        """
        await self.handed_over()
        while True:
            old, new = self.engine, Engine(config, self._lasting)
            begins_with = old.keys.last
            try:
                trouble = await start_and_wait(new)
                # No await from here to `step_back`: the old engine switches no key
                # between the decision and its execution.
                if old.keys.last != begins_with:
                    continue  # the new engine remembers less than the old one wrote
                if may_replace(old, trouble):
                    old.step_back()
                    # Decided: a cancellation comes too late.
                    await complete(self._swap(old, new))
                    return None
                return trouble
            finally:  # also after a bug, or when the server stops meanwhile
                if self.engine is not new:
                    await complete(new.close())

    async def handed_over(self) -> None:
        """Wait until the engine that was replaced last has left."""
        if self._leaving is not None:
            await asyncio.wait({self._leaving})

    async def close(self) -> None:
        """Close every engine; no take-over may be under way."""
        closing = [complete(self.engine.close())]
        if self._leaving is not None:
            closing.append(cancel_and_wait(self._leaving))
        await asyncio.gather(*closing)

    async def _swap(self, old: Engine, new: Engine) -> None:
        try:
            # Saved before any client sees the key_id; the old engine serves meanwhile.
            await new.take_effect()
        finally:  # the old engine has stepped back
            self._announcing.clear()
            self.engine = new
            self._leaving = asyncio.create_task(self._let_go(old, new))

    async def _let_go(self, old: Engine, new: Engine) -> None:
        """Wait for the calls on the old engine, and for Status to name the new key."""
        try:
            if old.keys.announced == new.keys.key_id:
                new.keys.announce(new.keys.key_id)
            elif old.keys.announced:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.announce):
                        await self._announcing.wait()
            await asyncio.sleep(self._pace.drain)
        finally:
            self._announced = new
            await complete(old.close())
            _log.info("the replaced engine has left")


async def start_and_wait(new: Engine) -> HsmKmsError | None:
    """Start an engine and wait until it is well, at most `token.start_timeout`.

    A worker that could not start, or a PIN file that is too young to be used, is a
    passing reason.

    Args:
        new: The engine.

    Returns:
        None if the engine is well; otherwise the reason. A rejected PIN and an unfit
        key are reported at once, because only the operator can mend them.
    """
    new.start()
    try:
        async with asyncio.timeout(new.config.token.start_timeout):
            while not new.well:
                if (final := _final(new)) is not None:
                    return final
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return new.workers.last_error or HsmKmsError(new.health.detail)
    return None


def may_replace(old: Engine, trouble: HsmKmsError | None) -> bool:
    """Return True if the new engine became well, or the old one does not serve either.

    Args:
        old: The engine in force.
        trouble: Why the new engine did not become well; None if it did.
    """
    return trouble is None or not (old.health.works or old.in_software)


def _final(engine: Engine) -> HsmKmsError | None:
    """Return the error that waiting does not mend, or None."""
    if isinstance(engine.workers.last_error, PinRejectedError):
        return engine.workers.last_error
    return engine.keys.ring.fault if engine.keys.ring is not None else None


class _Current:
    """Look up the current wrapper for each request, because a reload replaces it.

    Args:
        seal: Returns the wrapper to encrypt with.
        unseal: Returns the wrapper to decrypt with.
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
