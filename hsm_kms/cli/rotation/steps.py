"""Define what a step of a rotation is, and how it waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from hsm_kms.cli.streams import tell
from hsm_kms.clock import now
from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS: Final = 1.0
STEP_NAMES: Final = (
    *("generate", "switch", "settle", "re-encrypt"),
    *("scan", "verify", "retire", "drop"),
)
RESUME: Final = "run `hsm-kms rotation resume`"


class Seen(NamedTuple):
    """Say how a step stands now.

    Args:
        done: True if nothing is left to do.
        text: What was seen, and if the step is not done, what it will do.
    """

    done: bool
    text: str


class Step(Protocol):
    """Do one part of a rotation; it can be repeated at any time."""

    name: str

    def look(self) -> Seen:
        """Find out how the step stands, and change nothing.

        Raises:
            HsmKmsError: That cannot be found out, or the rotation cannot go on.
        """

    def do(self) -> Seen:
        """Do what is left, and return how the step stands then.

        Raises:
            HsmKmsError: The step cannot be done now.
        """


def waiting(look: Callable[[], Seen], until: float) -> Seen:
    """Look again and again until the step is done.

    What it waits for is printed on stderr whenever that changes.

    Args:
        look: Finds out how the step stands.
        until: When to give up, in seconds since the Unix epoch.

    Raises:
        HsmKmsError: The step is not done by then.
    """
    told = ""
    while True:
        seen = look()
        if seen.done:
            return seen
        if now() >= until:
            raise HsmKmsError(f"gave up waiting: {seen.text}")
        if seen.text != told:
            tell(f"waiting: {seen.text}")
            told = seen.text
        time.sleep(PAUSE_SECONDS)
