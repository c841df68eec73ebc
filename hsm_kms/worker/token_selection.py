"""Choose the one token that has everything that the configuration asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pkcs11 import TokenFlag

from hsm_kms.ipc.ckr import Cause
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pkcs11 import Token

    from hsm_kms.ipc.messages import Configure

_MOST_SHOWN: Final = 16


def has_selector(settings: Configure) -> bool:
    """Return True if the settings select a token."""
    return any(True for _ in _asked(settings))


def check_library(says: dict[str, str], settings: Configure) -> None:
    """Refuse a module that does not describe itself as the settings ask.

    Args:
        says: Values of C_GetInfo by RFC 7512's attribute names; trailing blanks do
            not count.
        settings: The values to look for.

    Raises:
        WorkerError: The module describes itself otherwise.
    """
    for name, wanted in settings.library.items():
        is_ = says[name].rstrip()
        if is_ != wanted:
            raise WorkerError(
                Cause.MODULE, f"the module's {name} is {is_!r}, not {wanted!r}"
            )


def choose(present: Sequence[Token], settings: Configure) -> Token:
    """Return the one token that matches.

    Args:
        present: Every token that the module shows.
        settings: The values to look for.

    Raises:
        WorkerError: No token matches, or several do.
    """
    wanted = [token for token in present if _matches(token, settings)]
    if len(wanted) == 1:
        return wanted[0]
    asked = ", ".join(f"{name} {value!r}" for name, value in _asked(settings))
    seen = _listed(wanted or present)
    if wanted:
        raise WorkerError(
            Cause.SEVERAL_TOKENS, f"{len(wanted)} tokens match {asked}: {seen}"
        )
    if any(TokenFlag.TOKEN_INITIALIZED in token.flags for token in present):
        raise WorkerError(Cause.NO_TOKEN, f"no token matches {asked}; seen: {seen}")
    # Also what a module shows whose files this process cannot read.
    raise WorkerError(
        Cause.BLANK,
        f"no token matches {asked}; to user {os.geteuid()} the module shows no "
        "initialised token",
    )


def _asked(settings: Configure) -> Iterator[tuple[str, str | int]]:
    for name, value in (
        ("token_label", settings.token_label),
        ("token_serial", settings.token_serial),
        ("manufacturer", settings.manufacturer),
        ("model", settings.model),
        ("slot", settings.slot),
    ):
        if value is not None:
            yield name, value


def _matches(token: Token, settings: Configure) -> bool:
    by_nature = (settings.token_serial, settings.slot) == (None, None)
    if by_nature and TokenFlag.TOKEN_INITIALIZED not in token.flags:
        # Some modules show a blank token, of the same make and model as the others.
        return False
    says: dict[str, str | int] = {
        "token_label": token.label,
        "token_serial": _serial(token),
        "manufacturer": token.manufacturer_id,
        "model": token.model,
        "slot": token.slot.slot_id,
    }
    return all(says[name] == value for name, value in _asked(settings))


def _listed(tokens: Sequence[Token]) -> str:
    shown = [
        f"label {token.label!r} serial {_serial(token)!r} slot {token.slot.slot_id}"
        for token in tokens[:_MOST_SHOWN]
    ]
    if len(tokens) > _MOST_SHOWN:
        shown.append(f"{len(tokens) - _MOST_SHOWN} more")
    return "; ".join(shown) or "none"


def _serial(token: Token) -> str:
    return token.serial.decode("utf-8", "replace")
