"""Say why a wrapped key cannot be decrypted."""

from __future__ import annotations

from typing import Final

from hsm_kms.errors import HsmKmsError

NO_KEY: Final = "no such key on this token"
RETIRED: Final = "its key is in keys.retired"
FOREIGN: Final = "its key was not generated on the token: see keys.foreign"
NOT_AUTHENTIC: Final = "not authentic: of another scope, or damaged"
LOCAL: Final = "made with a local KEK: see local_keys.accept_local"
REFUSED: Final = "the token does not decrypt with this key"
NOT_A_RECORD: Final = "the wrapped key is malformed"


class RefusedError(HsmKmsError):
    """Raised when a wrapped key cannot be decrypted; the text is one of those above."""
