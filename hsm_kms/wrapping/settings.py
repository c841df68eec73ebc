"""How DEKs are wrapped: what the configuration says, for the parts that do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Wrapping: TypeAlias = Literal["token", "fallback", "software"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapSettings:
    """How one of the APIs wraps.

    Args:
        wrapping: Who wraps: the token; the token, or else a local KEK; a local KEK.
        verify: Unwrap and compare what the token wraps before it is returned.
        accept_local: Open records by local KEKs.
        patience: Longest wait for a keyring, in seconds.
    """

    wrapping: Wrapping
    verify: bool
    accept_local: bool
    patience: float
