"""Tell how the trial of a key that is due went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.keys.token_key import TokenKey


@dataclass(frozen=True, slots=True)
class Trial:
    """Tell how the trial of a key that is due went.

    Args:
        passed: Wrap and unwrap under the key have just worked on every worker.
        failure: Why the key cannot be used; "" if it passed, or if it has not been
            tried on every worker yet.
    """

    passed: bool
    failure: str = ""


PASSED: Final = Trial(passed=True)
UNTRIED: Final = Trial(passed=False)

# Returns how the trial of a key went, and has an untried key tried soon.
Try: TypeAlias = "Callable[[TokenKey], Trial]"
