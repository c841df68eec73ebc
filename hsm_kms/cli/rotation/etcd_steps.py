"""Re-encrypt what is stored under the old key, and prove that nothing needs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.cli.etcd.conditions import migrate_line
from hsm_kms.cli.etcd.verify import conclude, every, verify_stored
from hsm_kms.cli.rotation.steps import Seen
from hsm_kms.cli.streams import tell
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import count_of
from hsm_kms.migrate.resources import parse_resource

if TYPE_CHECKING:
    from hsm_kms.cli.rotation.methods import Method
    from hsm_kms.cli.rotation.world import World

_TIMES: Final = 2  # an API server may have been late to use the new key


class ReEncrypt:
    """Re-encrypt the objects that are stored under the old key.

    Args:
        world: What is looked at.
        method: How they are re-encrypted.
    """

    name = "re-encrypt"

    def __init__(self, world: World, method: Method) -> None:
        self._world = world
        self._method = method

    def look(self) -> Seen:
        """Scan etcd for objects under the old key."""
        seen = _scanned(self._world)
        if seen.done:
            return seen
        return Seen(False, f"{seen.text}; {self._method.plan()}")

    def do(self) -> Seen:
        """Re-encrypt, and scan again.

        Raises:
            HsmKmsError: Objects are left under the old key.
        """
        world, seen, times = self._world, Seen(False, ""), 0
        while not seen.done and times < _TIMES:
            self._method.run()
            world.forget()
            seen, times = _scanned(world), times + 1
        if seen.done:
            return seen
        if not all(map(self._was_named, _resources(world))):
            tally, _where = world.tally()
            line = migrate_line(tally, *world.old_names())
            hint = f"name their resources with --resource, as in {line}"
        else:
            hint = "an API server may use the new key a minute later: wait"
        raise HsmKmsError(seen.text, hint=hint)

    def _was_named(self, resource: str) -> bool:
        """Return True if a resource may be among those that were to be re-encrypted.

        Args:
            resource: As a key in etcd names it: a built-in one lacks its group.
        """
        name = resource.partition(".")[0]
        wanted = map(parse_resource, self._world.rotation.resources)
        return any(each.name in {"*", name} for each in wanted)


class Scan:
    """Prove by a new scan that no stored object needs the old key.

    Args:
        world: What is looked at.
    """

    name = "scan"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Scan etcd."""
        return _scanned(self._world)

    def do(self) -> Seen:
        """Refuse to go on: objects came under the old key after the re-encryption.

        Raises:
            HsmKmsError: Always, unless that was only for a moment.
        """
        self._world.forget()
        seen = self.look()
        if seen.done:
            return seen
        raise HsmKmsError(
            f"{seen.text}, although all were re-encrypted",
            hint="a node that is not among --node may still encrypt with it",
        )


def _scanned(world: World) -> Seen:
    (tally, where), old = world.tally(), world.rotation.old_key
    count = world.under_old()
    if not count:
        if tally.unreadable:
            tell(
                f"{tally.unreadable} of {tally.total} objects cannot be parsed, so "
                "they may be stored under any key: see `hsm-kms etcd scan`"
            )
        return Seen(True, f"none of {tally.total} objects in {where} needs {old}")
    named = ", ".join(sorted(_resources(world))[:8])
    return Seen(
        False,
        f"{count} of {tally.total} objects in {where} are stored under {old} ({named})",
    )


def _resources(world: World) -> frozenset[str]:
    """Return the resources of the objects that are stored under the old key."""
    tally, _where = world.tally()
    return frozenset().union(*map(tally.resources_of_key, world.old_names()))


class Verify:
    """Have the token decrypt every wrapped key that etcd holds.

    That it did cannot be seen anywhere, so the journal says it.

    Args:
        world: What is looked at.
    """

    name = "verify"

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> Seen:
        """Read in the journal whether this was done."""
        done = self._world.rotation.done_step(self.name)
        if done is None:
            return Seen(False, "the token decrypts every wrapped key in etcd")
        return Seen(True, done[1])

    def do(self) -> Seen:
        """Verify."""
        means = self._world.means
        given = means.given
        verdict = asyncio.run(verify_stored(given.config, given.login, means.etcd))
        if not verdict.wrapped_keys and not verdict.stopped:
            read = count_of(verdict.total)
            return Seen(True, f"nothing in {read} was wrapped by hsm-kms")
        try:
            conclude(verdict)
        except HsmKmsError as error:
            old = self._world.rotation.old_key
            alone = f"if it needs another key than {old}, `hsm-kms keys retire {old}` "
            error.hint = f"{error.hint}; {alone}retires that key without this step"
            raise
        return Seen(True, f"the token decrypts {every(verdict)}")
