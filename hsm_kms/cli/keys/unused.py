"""Prove that etcd holds no object stored under a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.cli.etcd.conditions import migrate_line
from hsm_kms.cli.etcd.options import open_source
from hsm_kms.cli.etcd.progress import progress_bar
from hsm_kms.cli.streams import tell
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.etcd.tally import scan
from hsm_kms.interrupts import interruptible

if TYPE_CHECKING:
    from collections.abc import Collection

    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.etcd.tally import Tally

_STALE: Final = (
    "--from-json and --from-snapshot do not show what is stored now; give --endpoints "
    "(TLS files can come from stdin: see docs/commands.md)"
)


def require_live(choice: EtcdChoice) -> None:
    """Refuse a source that does not show what is stored now.

    Raises:
        ConfigError: A file was given.
    """
    if choice.from_json or choice.from_snapshot:
        raise ConfigError([_STALE])


def stored_names(survey: Survey, found: Found) -> set[str]:
    """Return the names under which etcd may hold values of a key.

    Args:
        survey: The keys on the token.
        found: The key.
    """
    also = survey.ring.settings.also_known_as.items()
    named = {key_id for key_id, cka_id in also if cka_id == found.ref.cka_id}
    return set(found.names.values()) | named


def tally_of(choice: EtcdChoice, names: Collection[str]) -> tuple[Tally, str]:
    """Scan etcd; return what it holds, and the name of the source.

    Args:
        choice: The etcd to scan.
        names: key_ids or fingerprints whose count must be exact.

    Raises:
        EtcdError: Not every object could be read.
    """
    etcd = open_source(choice)
    with interruptible(), etcd as source:
        with progress_bar(source, "scanning etcd") as step:
            tally = scan(source, step, watch=names)
        return tally, source.name


def require_unused(
    choice: EtcdChoice,
    survey: Survey,
    found: Found,
    *,
    held_hint: str = "",
    unreadable_hint: str = "",
) -> int:
    """Scan etcd, and refuse if a stored object needs the key.

    Args:
        choice: The etcd to scan.
        survey: The keys on the token.
        found: The key.
        held_hint: Hint of the error that is raised if an object needs the key; "" for
            the command that re-encrypts such objects.
        unreadable_hint: Hint of the error that is raised if values cannot be parsed;
            "" to print a note instead of raising an error.

    Returns:
        The number of objects that were read.

    Raises:
        EtcdError: Not every object could be read.
        HsmKmsError: An object is stored under the key, or may be.
    """
    names = stored_names(survey, found)
    tally, where = tally_of(choice, names)
    held = [name for name in sorted(names) if tally.of_key(name)]
    main = survey.main(found)
    if held:
        raise HsmKmsError(
            f"{sum(map(tally.of_key, held))} of {tally.total} objects in {where} are "
            f"stored under {main[0] if main else 'this key'}",
            hint=held_hint or f"run {migrate_line(tally, *held)} to re-encrypt them",
        )
    tell(f"none of {tally.total} objects in {where} is stored under the key")
    unreadable = (
        f"{tally.unreadable} of them cannot be parsed, so they may be stored under "
        "any key: see `hsm-kms etcd scan`"
    )
    if tally.unreadable and unreadable_hint:
        raise HsmKmsError(unreadable, hint=unreadable_hint)
    if tally.unreadable:
        tell(unreadable)
    return tally.total
