"""Create and replace the local KEKs that this process wraps with.

1. A local KEK wraps nothing before the token has unwrapped it to the same bytes.
2. Local KEKs are created in the background, and no request waits for one: the local KEK
   in use wraps until the next one exists, up to its hard limit.
3. A local KEK serves one key_id. A KEK that will become current gets its local KEK
   beforehand.
4. Without the token no local KEK wraps for longer than `max_offline`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.clock import since_boot
from hsm_kms.errors import HsmKmsError
from hsm_kms.log import get_logger
from hsm_kms.wrapping.by_local_kek import (
    MAX_USES,
    RANDOM_BYTES,
    LocalKek,
    Sealer,
    make_material,
    wipe,
)
from hsm_kms.wrapping.record import Kind

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from hsm_kms.config import schema
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.wrapping.by_token import ByToken
    from hsm_kms.wrapping.kek_cache import KekCache

RETRY_SECONDS: Final = 5.0
_TICK_SECONDS: Final = 60.0

_log = get_logger(__name__)


class LocalKeks:
    """Hold the local KEKs of one engine.

    Args:
        token: Wraps and unwraps local KEKs.
        opened: Receives each local KEK, to unwrap with.
        settings: When local KEKs are replaced, and how long they wrap.
        offline_for: Returns the seconds since the token was last available; None if
            it never was.
        alarm: Raised whenever a local KEK was created.
        created: Counts local KEKs created, by "ok" and "failed".
    """

    def __init__(
        self,
        token: ByToken,
        opened: KekCache,
        settings: schema.LocalKeys,
        *,
        offline_for: Callable[[], float | None],
        alarm: Alarm,
        created: Counter[str],
    ) -> None:
        self._token = token
        self._opened = opened
        self._settings = settings
        self._offline_for = offline_for
        self._alarm = alarm
        self._created = created
        self._wanted: dict[str, TokenKey] = {}
        self._sealers: dict[str, Sealer] = {}
        self._errors: dict[str, str] = {}
        self._wake = asyncio.Event()

    def adjust(self, settings: schema.LocalKeys) -> None:
        """Apply other settings.

        Args:
            settings: When local KEKs are replaced, and how long they wrap.
        """
        self._settings = settings

    def want(self, keys: Iterable[TokenKey]) -> None:
        """Keep a local KEK under each of `keys`, and under no other key."""
        self._wanted = {key.key_id: key for key in keys}
        for gone in self._sealers.keys() - self._wanted.keys():
            del self._sealers[gone]
        if any(self._is_stale(key_id) for key_id in self._wanted):
            self._wake.set()

    def sealer(self, key: TokenKey) -> Sealer | None:
        """Return the sealer for `key`, or None if DEKs must not be wrapped locally.

        That is so if no local KEK exists yet, if it has made 2^31 IVs, or if the token
        has been unavailable for longer than `max_offline`.
        """
        sealer = self._sealers.get(key.key_id)
        if sealer is None:
            return None
        if sealer.uses >= self._settings.max_uses:
            self._wake.set()
            if sealer.uses >= MAX_USES:
                return None
        offline = self._offline_for()
        if offline is None or offline > self._settings.max_offline:
            return None
        return sealer

    def has(self, key: TokenKey) -> bool:
        """Return True if there is a local KEK under `key`."""
        return key.key_id in self._sealers

    def trouble(self, key: TokenKey) -> str:
        """Return why no local KEK could be created under `key`, "" if none failed."""
        error = self._errors.get(key.key_id)
        return f"no local KEK could be created: {error}" if error else ""

    @property
    def uses(self) -> int:
        """Return how often the most used of the local KEKs has wrapped."""
        return max((sealer.uses for sealer in self._sealers.values()), default=0)

    @property
    def age(self) -> float:
        """Return the seconds since the oldest of the local KEKs was created."""
        born = [sealer.created for sealer in self._sealers.values()]
        return since_boot() - min(born) if born else 0.0

    @property
    def settled(self) -> bool:
        """True if each wanted local KEK exists, or could not be created."""
        return all(
            key_id in self._sealers or key_id in self._errors for key_id in self._wanted
        )

    async def run(self) -> None:
        """Create and replace local KEKs, until cancelled."""
        while True:
            # No await from here to the list of keys: what is wanted later wakes again.
            self._wake.clear()
            failed = False
            for key in list(self._wanted.values()):
                if self._is_stale(key.key_id):
                    failed |= not await self._replace(key)
            if failed:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _is_stale(self, key_id: str) -> bool:
        sealer = self._sealers.get(key_id)
        if sealer is None or sealer.uses >= self._settings.max_uses:
            return True
        age = since_boot() - sealer.created
        return sealer.uses > 0 and age >= self._settings.max_age

    async def _replace(self, key: TokenKey) -> bool:
        try:
            sealer = await self._create(key)
        except HsmKmsError as error:
            self._created["failed"] += 1
            self._log_failure(key, error)
            return False
        except Exception as error:  # noqa: BLE001 - a bug must not end the creation
            _log.error("bug while a local KEK was created", exc_info=error)
            return False
        self._created["ok"] += 1
        self._errors.pop(key.key_id, None)
        if key.key_id in self._wanted:  # it may be wanted no more by now
            _log.info("local KEK created", key_id=key.key_id, replaces=self.has(key))
            self._sealers[key.key_id] = sealer
            self._alarm.notify("a local KEK was created")
        return True

    async def _create(self, key: TokenKey) -> Sealer:
        """Create a local KEK, have the token wrap it, and unwrap it to compare.

        Raises:
            HsmKmsError: The token failed, or did not unwrap the same bytes.
        """
        material = make_material(await self._token.random(RANDOM_BYTES))
        try:
            nested = await self._token.seal(
                key,
                Kind.LOCAL_KEK_BY_TOKEN,
                bytes(material),
                deadline=None,
                verify=True,
            )
            kek = LocalKek(nested, material, self._token.scope)
        finally:
            wipe(material)
        self._opened.add(kek)
        return Sealer(kek, since_boot())

    def _log_failure(self, key: TokenKey, error: HsmKmsError) -> None:
        if self._errors.get(key.key_id) != error.sentence:
            self._errors[key.key_id] = error.sentence
            _log.warning(
                "no local KEK could be created",
                key_id=key.key_id,
                error=error.sentence,
                in_use=self.has(key),
            )
