"""Tell systemd what the server does, by the protocol of sd_notify(3).

1. Ready means that the KMS socket serves, not that the token is available: kubelet and
   kube-apiserver, which are ordered after the service, must not wait for a token.
2. The event loop pings the watchdog. It waits for no token and no disk, so systemd
   restarts only a server that answers nobody.
3. Nothing here blocks or raises. What systemd does not take now is sent later; a ping
   of the watchdog is not.
4. What is told shows in `systemctl status` to every user: fixed messages alone.

Workers do not inherit the variables that are read here (`token.spawn`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hsm_kms.health.state import HealthState

STATUS_SECONDS: Final = 2.0  # how soon `systemctl status` shows a change

_log = get_logger(__name__)


class Systemd:
    """Send notifications to the service manager that started this process, if any.

    Args:
        address: Path of the manager's socket, or "@" and the name of an abstract one;
            "" if nobody wants to be notified.
        watchdog: Seconds without a ping after which the manager acts; None if it waits
            for none.

    Attributes:
        watchdog: Seconds without a ping after which the manager acts, or None.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog
        self._waiting: deque[bytes] = deque()
        self._failed = False
        self._stopping = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Systemd:
        """Return what NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID describe.

        Args:
            env: The environment.
        """
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        mine = pid in {"", str(os.getpid())}
        watchdog = int(usec) / 1e6 if mine and usec.isdecimal() else 0.0
        return cls(env.get("NOTIFY_SOCKET", ""), watchdog or None)

    def ready(self) -> None:
        """Say that the KMS socket serves, and that no reload is under way."""
        if not self._stopping:
            self._tell("READY=1")

    def reloading(self) -> None:
        """Say that the configuration file is read again; `ready` ends that."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the server stops, and say nothing of reloads after that."""
        self._stopping = True
        self._tell("STOPPING=1")

    async def run(self, status: Callable[[], str]) -> None:
        """Ping the watchdog and tell each change of the status, until cancelled.

        Args:
            status: Returns one line for `systemctl status`.
        """
        if not self._address:
            return
        told = ""
        while True:
            self._send_waiting()
            if self.watchdog is not None:
                self._send(b"WATCHDOG=1")
            now = status()
            if now != told:
                self._tell(f"STATUS={now}")
            told = now
            await asyncio.sleep(min(STATUS_SECONDS, (self.watchdog or 60.0) / 2))

    def _tell(self, message: str) -> None:
        if self._address:
            self._waiting.append(message.encode())
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()

    def _send(self, message: bytes) -> bool:
        """Send a message; return False if it should be sent again later."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            try:
                out.sendto(message, _socket_name(self._address))
            except BlockingIOError:  # the manager is busy, and its queue full
                return False
            except OSError as error:
                if not self._failed:
                    _log.warning("cannot notify systemd", error=error.strerror)
                self._failed = True
        return True


def status_text(state: HealthState, *, in_force: bool) -> str:
    """Return the line for `systemctl status`.

    Args:
        state: What Status answers.
        in_force: True if the configuration file is in force.
    """
    text = state.healthz if state.ready else f"{state.state}: {state.healthz}"
    return text if in_force else f"{text}; the configuration file is not in force"


def _socket_name(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address
