"""Define the settings by which one API wraps and unwraps DEKs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Wrapping: TypeAlias = Literal["token", "fallback", "software"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapSettings:
    """Hold what the configuration says about one API.

    Args:
        wrapping: The wrapping mode: the token wraps; the token wraps, or a local KEK if
            the token is unavailable; or a local KEK wraps.
        verify: Unwrap and compare what the token wrapped before it is returned.
        accept_local: Unwrap records made with local KEKs.
        patience: Longest wait for a keyring, in seconds.
    """

    wrapping: Wrapping
    verify: bool
    accept_local: bool
    patience: float
