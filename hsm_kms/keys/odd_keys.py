"""Log keys that an operator should look at: unidentified, or with the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from hsm_kms.keys.keyring import Keyring

SAME_NAMES: Final = (
    "another key has the same CKA_LABEL and CKA_ID; give each a CKA_ID of its own with "
    "the tools of the HSM"
)
NO_CKA_ID: Final = "it has no CKA_ID; give it one with the tools of the HSM"

_log = get_logger(__name__)


class OddKeys:
    """Log each such key once, and again after it was in order for a while."""

    def __init__(self) -> None:
        self._logged: frozenset[tuple[str, str]] = frozenset()

    def log(self, ring: Keyring) -> None:
        """Log the odd keys of a keyring that were not logged before.

        Args:
            ring: The keys as just read.
        """
        odd = frozenset(
            {("", each.error.sentence) for each in ring.unidentified}
            | {(key.key_id, SAME_NAMES) for key in ring.twins}
            | {(key.key_id, NO_CKA_ID) for key in ring.without_cka_id}
        )
        for key_id, reason in sorted(odd - self._logged):
            _log.warning("key needs attention", key_id=key_id or None, reason=reason)
        self._logged = odd
