"""Define `--fail-if`: what a scan must not find."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.config.formats import KEY_ID
from hsm_kms.etcd.resources import CORE
from hsm_kms.etcd.text import count_of, printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from hsm_kms.etcd.tally import Tally

_UNENCRYPTED: Final = "unencrypted"
_KEY_ID: Final = "key_id="
_MAX_NAMED: Final = 8
_MAX_NAME_CHARS: Final = 64
_EVERYTHING: Final = "*.*"
_WITH_GROUP: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


@dataclass(frozen=True, slots=True)
class Condition:
    """Name one thing that a scan must not find.

    Args:
        key_id: Objects stored under this key, whatever its suffix; "" for
            unencrypted objects that should be encrypted.
    """

    key_id: str

    def count(self, tally: Tally) -> int:
        """Return the number of objects that the scan found."""
        return tally.of_key(self.key_id) if self.key_id else tally.unencrypted

    def message(self, tally: Tally) -> str:
        """Return what the scan found, in words."""
        count = self.count(tally)
        objects = count_of(count)
        if not self.key_id:
            return f"{objects} unencrypted that should not be"
        if count:
            return f"{objects} under {self.key_id}"
        return f"{objects} under {self.key_id}: no stored value needs it"

    def cure(self, tally: Tally) -> str:
        """Return what to do if the scan found something."""
        if self.key_id:
            return (
                f"unless it is the current key, run {migrate_line(tally, self.key_id)} "
                "to re-encrypt them"
            )
        return _cure_of_unencrypted(tally)

    def as_json(self, tally: Tally) -> dict[str, Any]:
        """Return what the scan found, for JSON."""
        name = f"{_KEY_ID}{self.key_id}" if self.key_id else _UNENCRYPTED
        count = self.count(tally)
        return {"condition": name, "objects": count, "met": count > 0}


def migrate_line(tally: Tally, *key_ids: str) -> str:
    """Return the command that re-encrypts what is stored under keys, in backquotes."""
    return _migrate(frozenset().union(*map(tally.resources_of_key, key_ids)))


def _cure_of_unencrypted(tally: Tally) -> str:
    exposed = {each.row.resource for each in tally.rows() if each.exposed}
    encrypted = tally.encrypted_resources()
    cures = []
    if exposed & encrypted:
        cures.append(f"run {_migrate(exposed & encrypted)} to encrypt them")
    if exposed - encrypted:
        names = ", ".join(_named(exposed - encrypted))
        cures.append(
            f"nothing of {names} is encrypted: see that a provider other than identity "
            "comes first for it in the EncryptionConfiguration, then run "
            f"{_migrate(exposed - encrypted)}"
        )
    return "; ".join(cures)


def _migrate(resources: Collection[str]) -> str:
    """Return the command that re-encrypts resources, in backquotes.

    The name that a key in etcd gives a built-in resource lacks the group, without which
    the API server does not find it.
    """
    named = len(resources) <= _MAX_NAMED and all(map(_is_served, resources))
    options = [f"--resource {each}" for each in sorted(resources)]
    if not named:
        options = [f"--resource '{_EVERYTHING}'"]  # a shell would expand it
    default = options in ([], ["--resource secrets"])
    return f"`{' '.join(['hsm-kms migrate', *([] if default else options)])}`"


def _is_served(resource: str) -> bool:
    """Return True if the API server surely serves a resource under this name."""
    return resource in CORE or _WITH_GROUP.fullmatch(resource) is not None


def _named(resources: Collection[str]) -> list[str]:
    """Return resources by name; one name for all if there are many."""
    if len(resources) > _MAX_NAMED:
        return [_EVERYTHING]
    return [printable(each, _MAX_NAME_CHARS) for each in sorted(resources)]


def _conditions(
    _: click.Context, __: click.Parameter, texts: tuple[str, ...]
) -> tuple[Condition, ...]:
    return tuple(map(_condition, texts))


def _condition(text: str) -> Condition:
    if text == _UNENCRYPTED:
        return Condition("")
    key_id = text.removeprefix(_KEY_ID)
    # A mistyped key_id would be found nowhere: its key would look safe to delete.
    if text == key_id or not KEY_ID.fullmatch(key_id):
        raise click.BadParameter(
            f"{text!r} is neither {_UNENCRYPTED} nor {_KEY_ID} and a key_id as "
            "`keys list` shows it"
        )
    return Condition(key_id)


conditions_option = click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    callback=_conditions,
    help="Exit with 1 if the scan finds this; see above.  [may be repeated]",
)
