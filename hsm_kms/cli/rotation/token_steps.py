"""Generate the new key, and retire the old one: the steps on the token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.cli.keys.generate import pending_of
from hsm_kms.cli.keys.retire import Retiring
from hsm_kms.cli.keys.rotate import current_of, generate_next, require_pending
from hsm_kms.cli.rotation.steps import Seen
from hsm_kms.clock import spell, when
from hsm_kms.errors import HsmKmsError
from hsm_kms.keys.key_id import activation_of, fingerprint_in
from hsm_kms.keys.keyring import KeyState

if TYPE_CHECKING:
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.cli.rotation.world import World


_SUPERSEDED: Final = frozenset({KeyState.DECRYPT_ONLY, KeyState.RETIRED})


class Generate:
    """Generate the key that replaces the old one, or find the one that is pending.

    Args:
        world: What is looked at.
    """

    name = "generate"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Find the new key; a run that was killed may have generated it."""
        world, rotation = self._world, self._world.rotation
        survey = world.survey()
        if rotation.new_key is None:
            found = _successor(survey, rotation.old_key)
            main = survey.main(found) if found else None
            if main is None:
                return Seen(
                    False,
                    "a key is generated, and becomes current "
                    f"{spell(rotation.activate_in)} later",
                )
            rotation.new_key = main[0]
        return self._new_key(survey, rotation.new_key)

    def _new_key(self, survey: Survey, key_id: str) -> Seen:
        found = survey.find(key_id)
        if found is None:
            raise HsmKmsError(
                f"the new key {key_id} is no longer on the token",
                hint="if `hsm-kms keys cancel` has destroyed it, run `hsm-kms rotation "
                "start --abandon` to begin again",
            )
        old, current = self._world.rotation.old_key, survey.ring.current
        if (
            current is not None
            and fingerprint_in(current.key_id) != fingerprint_in(old)
            and survey.state(found) in _SUPERSEDED
        ):
            raise HsmKmsError(
                f"{current.key_id} has replaced the new key {key_id}",
                hint=f"run `hsm-kms rotation start --abandon --old {old}` to replace "
                f"{old} by the current key",
            )
        require_pending(survey, found, key_id)
        self._world.rotation.activation = activation_of(found.ref.cka_id) or None
        pending = pending_of(survey, found)
        if pending is None:
            return Seen(True, f"{key_id} is current on this node")
        if pending.at is None:
            return Seen(True, f"{key_id} is pending")
        return Seen(True, f"{key_id} becomes current at {when(pending.at)}")

    def do(self) -> Seen:
        """Generate the key."""
        world, rotation = self._world, self._world.rotation
        means = world.means
        asyncio.run(
            generate_next(means.given, seconds=rotation.activate_in, force=means.force)
        )
        world.forget()
        return self.look()


def _successor(survey: Survey, old: str) -> Found | None:
    """Return the key that is current instead of the old one, or will be; or None.

    Raises:
        HsmKmsError: There is no current key, or several keys are pending.
    """
    current = current_of(survey)
    if fingerprint_in(current.key_id) != fingerprint_in(old):
        return next(each for each in survey.found if each.is_key(current))
    pending = [each.key for each in survey.ring.pending if each.at is not None]
    if len(pending) > 1:
        names = ", ".join(each.key_id for each in pending)
        raise HsmKmsError(
            f"{len(pending)} keys are pending: {names}",
            hint="run `hsm-kms keys cancel` for all but one of them",
        )
    if not pending:
        return None
    return next(each for each in survey.found if each.is_key(pending[0]))


class Retire:
    """Retire the old key.

    Args:
        world: What is looked at.
    """

    name = "retire"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Find out whether the old key is retired, by its label or `keys.retired`."""
        survey, old = self._world.survey(), self._world.rotation.old_key
        found = survey.find(old)
        if found is None:
            return Seen(True, f"{old} is not on the token")
        state = survey.state(found)
        if state is KeyState.RETIRED and not found.half_retired:
            return Seen(True, f"{old} is retired")
        return Seen(False, f"{old}, {state} on this node, is retired; it can be undone")

    def do(self) -> Seen:
        """Retire the key as `keys retire` does, which scans etcd once more."""
        world, old = self._world, self._world.rotation.old_key
        means = world.means
        retiring = Retiring(means.given, old, means.etcd, yes=True)
        shown, *lines = asyncio.run(retiring.run())
        world.forget()
        seen = self.look()
        if not seen.done and shown["keys_retired"] is not None:
            raise HsmKmsError(
                f"{old} can be retired by the configuration only: "
                f"{' '.join(map(str.strip, lines))}",
                hint="add this to the configuration of every node",
            )
        return seen
