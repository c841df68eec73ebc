"""Choose what Ctrl-C does: exit at once, or raise so that the command cleans up.

Nothing else is imported here, because Ctrl-C must be handled before that.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

    _Handler = Callable[[int, FrameType | None], object]

_STDERR = 2


class Interrupted(KeyboardInterrupt):
    """Raised when a signal other than SIGINT ends a command that must clean up.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(error: BaseException | None) -> int:
    """Return the exit code by which a shell knows the signal: 130 for SIGINT.

    Args:
        error: The KeyboardInterrupt that the signal raised.
    """
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


def prepare() -> None:
    """Exit at once on SIGINT from now on, unless this process ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_at_once)
    sys.unraisablehook = _deliver_again


def exiting() -> _Handling:
    """Exit at once on SIGINT inside a `with` block that holds nothing, as of imports.

    KeyboardInterrupt, raised inside an import, could be caught there, or leave a module
    half loaded.
    """
    return _Handling(_exit_at_once, signal.SIGINT)


def raising() -> _Handling:
    """Raise KeyboardInterrupt on SIGINT inside a `with` block, which cleans up."""
    return _Handling(signal.default_int_handler, signal.SIGINT)


def interruptible() -> _Handling:
    """Let Ctrl-C interrupt a call that blocks the event loop; asyncio's would wait."""
    return _Handling(signal.default_int_handler, signal.SIGINT, in_event_loop=True)


def raising_when_ended() -> _Handling:
    """Raise `Interrupted` on SIGTERM and SIGHUP inside a `with` block, which cleans up.

    SIGHUP comes when the terminal is closed.
    """
    return _Handling(_raise, signal.SIGTERM, signal.SIGHUP)


def held_back() -> _HeldBack:
    """Deliver signals that would raise only at the end of a `with` block.

    For what must not be left half done. A gRPC channel that an exception leaves while
    it closes waits forever when it is closed again, as its destructor does.
    """
    return _HeldBack()


class _Handling:
    """Handle signals inside a `with` block.

    A shell without job control starts what ends in "&" with SIGINT ignored, and nohup
    ignores SIGHUP; that is obeyed. An event loop handles SIGINT itself, unless
    `in_event_loop` is True.
    """

    def __init__(
        self,
        handler: _Handler,
        *numbers: signal.Signals,
        in_event_loop: bool = False,
    ) -> None:
        self._handler = handler
        self._numbers = numbers
        self._in_event_loop = in_event_loop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in self._numbers:
            if self._may_handle(number):
                self._before[number] = signal.signal(number, self._handler)

    def _may_handle(self, number: signal.Signals) -> bool:
        before = signal.getsignal(number)
        if number != signal.SIGINT or self._in_event_loop:
            return before is not signal.SIG_IGN
        return before in {signal.default_int_handler, _exit_at_once}

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class _HeldBack(_Handling):
    """Note signals inside a `with` block, and deliver the first at its end."""

    def __init__(self) -> None:
        super().__init__(self._note, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._came: list[int] = []

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.append(number)

    def _may_handle(self, number: signal.Signals) -> bool:
        return signal.getsignal(number) in {signal.default_int_handler, _raise}

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for came in self._came[:1]:
            signal.raise_signal(came)


def _exit_at_once(number: int, _: FrameType | None) -> NoReturn:
    try:
        os.write(_STDERR, b"hsm-kms: interrupted\n")
    finally:
        os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _deliver_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Deliver a Ctrl-C again that the interpreter would print as ignored, and lose."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)
