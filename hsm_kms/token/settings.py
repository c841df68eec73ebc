"""Define the settings of the token workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.ipc.messages import Configure


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Hold what the configuration says about workers.

    Args:
        configure: First message to each worker.
        env: Added to the environment, for the vendor's module.
        workers: Number of worker processes.
        sessions: Number of session channels of each worker.
        call_timeout: Seconds after which a call counts as stuck.
        hang_timeout: Seconds after which the worker of a call is ended.
        start_timeout: Seconds from exec until all sessions are open.
    """

    configure: Configure
    env: Mapping[str, str] = field(default_factory=dict)
    workers: int
    sessions: int
    call_timeout: float
    hang_timeout: float
    start_timeout: float
