"""How token workers are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.ipc.messages import Configure


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How workers are made.

    Args:
        configure: First message to each worker.
        env: Environment for the module.
        workers: How many worker processes.
        sessions: Session channels of each.
        call_timeout: Seconds after which a call counts as stuck.
        hang_timeout: Seconds after which its worker is ended.
        start_timeout: Seconds from exec to the first lent session.
    """

    configure: Configure
    env: Mapping[str, str] = field(default_factory=dict)
    workers: int
    sessions: int
    call_timeout: float
    hang_timeout: float
    start_timeout: float
