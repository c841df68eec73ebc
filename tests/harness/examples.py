"""How many cases a random test tries: few by default, many where HSM_KMS_LONG=1.

`make test` is run after every change and tries few; `make test-faults` and CI try many.
"""

from __future__ import annotations

import os

LONG = os.environ.get("HSM_KMS_LONG", "") not in {"", "0"}


def examples(few: int, many: int) -> int:
    """Return the number of examples for this run.

    Args:
        few: What finds most faults in a second.
        many: What is worth a minute.
    """
    return many if LONG else few
