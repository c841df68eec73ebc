"""Provide `hsm-kms keys list`: list keys, their states, and leftovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.hints import leading_on
from hsm_kms.cli.keys.generate import pending_of
from hsm_kms.cli.keys.journal import Journal, seconds_of
from hsm_kms.cli.keys.options import Given, common_options
from hsm_kms.cli.keys.read_survey import survey_of
from hsm_kms.cli.keys.table import Line, table
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, spell, when
from hsm_kms.errors import HsmKmsError, KeyNotFoundError
from hsm_kms.ipc.values import Cipher
from hsm_kms.keys.key_id import activation_of
from hsm_kms.keys.keyring import (
    FOREIGN,
    FOREIGN_HINT,
    KeyState,
)
from hsm_kms.keys.odd_keys import NO_CKA_ID, SAME_NAMES
from hsm_kms.keys.policy import born_here, violations
from hsm_kms.state_dir.directory import StateDir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.keys.survey import Found, Survey
    from hsm_kms.ipc.values import KeyRef

ADVISED_SECONDS: Final = 90 * 86400.0
HELP: Final = """\
List the keys with the configured label, and the state of each on this node.

\b
pending       becomes current at its activation time, or when keys.current names it
current       encrypts and decrypts
decrypt-only  decrypts what was encrypted with it
foreign       decrypts nothing: not generated on the token (see keys.foreign)
retired       does not decrypt: its label says so, or keys.retired lists it
refused       must not encrypt; the reason is in the line below
unfinished    half a pair (AES key and HMAC key) that an interrupted run left

-o json prints a list. Each key has key_id (null if it has none), state, reason,
cipher, label, cka_id, activation (seconds since 1970, 0 if its CKA_ID has none),
activation_time, becomes_current and retired_since (RFC 3339 or null),
generated_on_token, policy_violations, and also (key_ids of the same AES key with
another cipher).
"""


@click.command("list", help=HELP)
@common_options
def list_keys(given: Given) -> None:
    """List every key, then the leftovers of interrupted runs."""
    survey = survey_of(given)
    lines = [*_keys(given, survey), *_leftovers(given, survey)]
    given.show([each.shown for each in lines], *table(lines))
    if survey.error is not None:
        raise survey.error
    if survey.ring.fault is not None:
        _tell_fault(survey.ring.fault)
    for hint in _advice(given, survey):
        tell(f"hint: {hint}")


def _tell_fault(fault: HsmKmsError) -> None:
    """Say why no key encrypts, which is no failure of this command."""
    none = isinstance(fault, KeyNotFoundError)
    tell(str(fault) if none else f"warning: {fault}")
    if hint := leading_on(fault.hint):
        tell(f"hint: {hint}")


# Keys


def _keys(given: Given, survey: Survey) -> Iterator[Line]:
    keys = [survey.key(found) for found in survey.found]
    times = [key.activation for key in keys if key]
    for found in survey.found:
        key = survey.key(found)
        remarks = [*_also(survey, found), *_odd_names(survey, found)]
        if key and key.activation and times.count(key.activation) > 1:
            remarks.append(
                "another key has the same time: the larger key_id comes later"
            )
        yield _line(given, survey, found, tuple(remarks))


def _line(given: Given, survey: Survey, found: Found, remarks: tuple[str, ...]) -> Line:
    state = survey.state(found)
    main = survey.main(found)
    pending = pending_of(survey, found)
    at = pending.at if pending and state is KeyState.PENDING else None
    since = _retired_since(given, found) if state is KeyState.RETIRED else None
    reason = _reason(survey, found, at=at, since=since)
    half = [_half_retired(main)] if found.half_retired else []
    activation = activation_of(found.ref.cka_id)
    cipher = main[1] if main else None
    settings = survey.ring.settings
    shown = {
        "key_id": main[0] if main else None,
        "state": str(state),
        "reason": reason,
        "cipher": str(cipher) if cipher else None,
        "label": found.ref.label,
        "cka_id": found.ref.cka_id.hex(),
        "activation": activation,
        "activation_time": when(activation) if activation else None,
        "becomes_current": when(at) if at is not None else None,
        "retired_since": when(since) if since is not None else None,
        "generated_on_token": born_here(found.seen),
        "policy_violations": list(
            violations(found.seen, cipher or Cipher.GCM, settings)
        ),
        "also": [
            {"key_id": survey.key_id(name), "cipher": str(other)}
            for other, name in found.names.items()
            if other is not cipher
        ],
    }
    return Line(shown=shown, remarks=(*([reason] if reason else []), *half, *remarks))


def _reason(
    survey: Survey, found: Found, *, at: float | None, since: float | None
) -> str:
    """Return why a key is in its state, or "" if the state itself says so."""
    state = survey.state(found)
    if state is KeyState.PENDING:
        if at is None:
            return "until keys.current names it"
        return f"becomes current at {when(at)}, in {spell(at - now())}"
    if state is KeyState.RETIRED:
        how = "by its label" if found.relabelled else "by keys.retired"
        known = "at an unknown time" if since is None else f"since {when(since)}"
        return f"{how}, {known}"
    if state is KeyState.FOREIGN:
        return f"{FOREIGN}; {FOREIGN_HINT}"
    return _against(survey, found)


def _against(survey: Survey, found: Found) -> str:
    key = survey.key(found)
    if key is None:
        return found.problem
    if not key.encrypts and survey.cipher is Cipher.CBC_HMAC and found.beside is None:
        return "it has no HMAC key, which it needs because this token lacks AES-GCM"
    if not key.encrypts:
        return f"this token does not encrypt with {key.cipher}"
    return ", ".join(key.violations)


def _retired_since(given: Given, found: Found) -> float | None:
    if found.retired_since is not None:
        return found.retired_since
    try:
        return Journal(given.config).retired_since(set(found.names.values()))
    except HsmKmsError:
        return None  # `_advice` reports the error


def _half_retired(main: tuple[str, Cipher] | None) -> str:
    key_id = main[0] if main else "KEY_ID"
    return (
        "`keys retire` was interrupted before it changed the HMAC key: run `hsm-kms "
        f"keys retire {key_id}` to finish, or add --undo to reverse it"
    )


def _also(survey: Survey, found: Found) -> Iterator[str]:
    """Yield the key's other key_id, if this node remembers that one."""
    main = survey.main(found)
    for cipher, name in found.names.items():
        if main and cipher is not main[1] and name in survey.memory.known:
            yield f"with {cipher} its key_id is {survey.key_id(name)}"


def _odd_names(survey: Survey, found: Found) -> Iterator[str]:
    """Yield what to do about names that do not lead to this key alone."""
    if sum(each.ref == found.ref for each in survey.found) > 1:
        yield SAME_NAMES
    elif not found.ref.cka_id and found.keys:
        yield NO_CKA_ID


# Leftovers


def _leftovers(given: Given, survey: Survey) -> Iterator[Line]:
    try:
        begun = {each.cka_id: each for each in Journal(given.config).begun()}
    except HsmKmsError:
        begun = {}
    for ref in survey.loose:
        work = begun.get(ref.cka_id.hex())
        key_id = work.key_id if work else None
        what = f"an HMAC key without its AES key, labelled {ref.partner.label!r}"
        if work is None:
            end = f"run `hsm-kms keys cancel {ref.cka_id.hex()}` to remove it"
        elif key_id is None:
            end = (
                "`keys generate` or `keys rotate` was interrupted; "
                "the next run of either removes it"
            )
        else:
            end = (
                f"`keys {work.work}` was interrupted at {work.began}; "
                f"run `hsm-kms keys {work.work} {key_id}` to finish"
            )
        yield Line(shown=_leftover(ref, key_id, f"{what}; {end}"), remarks=(what, end))


def _leftover(ref: KeyRef, key_id: str | None, reason: str) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "state": "unfinished",
        "reason": reason,
        "cipher": None,
        "label": ref.label,
        "cka_id": ref.cka_id.hex(),
        "activation": activation_of(ref.cka_id),
        "activation_time": None,
        "becomes_current": None,
        "retired_since": None,
        "generated_on_token": None,
        "policy_violations": [],
        "also": [],
    }


# Advice


def _advice(given: Given, survey: Survey) -> Iterator[str]:
    current = survey.ring.current
    age = _age_of_current(given, survey)
    if current is not None and age is not None and age > ADVISED_SECONDS:
        yield (
            f"the current key is {spell(age)} old; rotate it at least every 90 d: run "
            "`hsm-kms keys rotate` to generate the next key"
        )
    try:
        begun = Journal(given.config).begun()
    except HsmKmsError as error:
        yield f"leftovers of earlier commands are unknown: {error.sentence}"
        return
    there = {found.ref.cka_id.hex() for found in survey.found}
    for work in begun:
        if work.key_id and work.cka_id in there:
            yield (
                f"`keys {work.work} {work.key_id}` was interrupted at {work.began} "
                "before it destroyed anything: run it again, or ignore this"
            )


def _age_of_current(given: Given, survey: Survey) -> float | None:
    """Return the seconds since the current key became active, or None if unknown.

    If the CKA_ID has no activation time, the state directory says since when the key
    is current on this node.
    """
    current = survey.ring.current
    if current is None:
        return None
    if current.activation:
        return now() - current.activation
    try:
        last = StateDir(given.config.state_dir).last_key()
    except HsmKmsError:
        return None
    if last is None or last.key_id != current.key_id:
        return None
    since = seconds_of(last.since)
    return None if since is None else now() - since
