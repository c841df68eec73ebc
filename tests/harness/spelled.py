"""Secrets in every form in which a text might hold them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def spellings(secret: bytes) -> dict[str, str]:
    """Return a secret in every form in which a text might hold it."""
    return {
        "raw": secret.decode("latin-1"),
        "hex": secret.hex(),
        "base64": base64.b64encode(secret).decode().rstrip("="),
        "url": base64.urlsafe_b64encode(secret).decode().rstrip("="),
        "repr": repr(secret)[2:-1],
    }


def found(secrets: Iterable[bytes], text: str) -> set[str]:
    """Return the forms in which a text holds one of the secrets."""
    return {
        form
        for secret in secrets
        for form, spelt in spellings(secret).items()
        if spelt in text
    }
