"""Start `hsm-kms`: handle signals and harden the process before anything is imported.

`serve` imports for up to a second before its event loop handles signals. Until then
SIGHUP must not kill it, and SIGTERM must end it also as process 1 of a container, for
which the kernel discards a signal that has no handler. Ctrl-C ends every command in
that time without a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

from hsm_kms import interrupts

# The image starts hsm-kms with these blocked, so that none is lost before this line.
_BLOCKED = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


def main() -> None:
    """Handle signals, harden this process, then run the command line and exit."""
    take_signals(sys.argv[1:])
    _open_standard_streams()
    from hsm_kms.hardening import harden_process  # noqa: PLC0415 - signals come first

    harden_process()
    from hsm_kms.cli import main as command_line  # noqa: PLC0415 - only once hardened

    command_line()


def take_signals(arguments: list[str]) -> None:
    """Handle SIGINT, and SIGTERM and SIGHUP of `serve` until its event loop does.

    Args:
        arguments: The command and its options.
    """
    interrupts.prepare()
    if arguments[:1] == ["serve"]:
        signal.signal(signal.SIGTERM, _exit)
        # The file is read once more when the server listens: nothing else is to do.
        signal.signal(signal.SIGHUP, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def _exit(*_: object) -> None:
    # Nothing is held yet. SystemExit, raised inside an import, could be caught there.
    os._exit(0)


def _open_standard_streams() -> None:
    """Open /dev/null as stdin, stdout or stderr if the caller closed one of them.

    Otherwise the next file that is opened, such as a socket to a worker, would get the
    number, and what is printed would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - until the end
