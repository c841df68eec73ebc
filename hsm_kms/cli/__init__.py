"""Define `hsm-kms`, the command line.

Results go to stdout and everything else to stderr: an error as "hsm-kms: CAUSE" in
lower case, then its cure as "hint: CURE". The exit code is 0 for success, 1 if a check
failed, the token refused or the output could not be written, and 2 if the command line
or the configuration is wrong. As a shell has it for signals, it is 130 after Ctrl-C,
and 141 if nobody reads the output any more.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Final

import click

from hsm_kms import __version__, interrupts
from hsm_kms.cli import colour, streams
from hsm_kms.cli.hints import leading_on
from hsm_kms.cli.lazy import Lazy, LazyGroup
from hsm_kms.errors import CommandInterruptedError, ConfigError, HsmKmsError

COMPLETE: Final = "_HSM_KMS_COMPLETE"  # set by the scripts of `completion`
_COMMANDS = {
    "init": Lazy(
        "hsm_kms.cli.init.command:init",
        "Write configuration and manifests for a node into DIRECTORY.",
    ),
    "serve": Lazy(
        "hsm_kms.cli.serve:serve",
        "Serve the Kubernetes KMS API until SIGTERM.",
    ),
    "check": Lazy(
        "hsm_kms.cli.check:check",
        "Check the configuration, module, token, login, keys, policy and mechanism.",
    ),
    "status": Lazy(
        "hsm_kms.cli.status:status",
        "Ask a running server for its Status over the KMS socket.",
    ),
    "probe": Lazy(
        "hsm_kms.cli.probe:probe",
        "Try Status, Encrypt and Decrypt of any KMS plugin through its socket.",
    ),
    "bench": Lazy(
        "hsm_kms.cli.bench:bench",
        "Measure how fast the token is, and say if that is enough.",
    ),
    "nodes": Lazy(
        "hsm_kms.cli.nodes:nodes",
        "Compare the keys that the nodes of a cluster use.",
    ),
    "keys": Lazy(
        "hsm_kms.cli.keys:keys_group",
        "Generate, list, rotate, retire and destroy the keys on the token.",
    ),
    "rotation": Lazy(
        "hsm_kms.cli.rotation:rotation_group",
        "Replace the current key on all nodes, guided from step to step.",
    ),
    "etcd": Lazy(
        "hsm_kms.cli.etcd:etcd_group",
        "Count, explain, verify and decrypt the values that the API server stored.",
    ),
    "migrate": Lazy(
        "hsm_kms.cli.migrate.command:migrate",
        "Re-encrypt existing objects.",
    ),
    "token": Lazy(
        "hsm_kms.cli.token:token_group",
        "List tokens, and try a rejected PIN once more.",
    ),
    "config": Lazy(
        "hsm_kms.cli.config:config_group",
        "Show the configuration, and which settings there are.",
    ),
    "completion": Lazy(
        "hsm_kms.cli.completion:completion",
        "Print the script that completes commands and options in your shell.",
    ),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="hsm-kms")
def cli() -> None:
    """Provide a Kubernetes KMS plugin whose key never leaves a PKCS#11 token."""


def main() -> None:
    """Run the command line and exit."""
    with streams.prepared():
        sys.exit(_exit_code())


def _exit_code() -> int:
    """Run the command, print its error, and return its exit code."""
    try:
        with interrupts.raising():
            return _run()
    except (KeyboardInterrupt, click.Abort) as error:
        return _stopped(error)
    except HsmKmsError as error:
        return _failed(error)
    except click.UsageError as error:
        return _misused(error)
    except UnicodeEncodeError as error:
        return _not_text(error)
    except streams.OutputError as error:
        return _could_not_write(error)


def _run() -> int:
    if os.environ.get(COMPLETE):
        from hsm_kms.cli import completion  # noqa: PLC0415 - few runs complete

        return completion.answer(cli, os.environ[COMPLETE])
    try:
        colours = colour.choice()
        with cli.make_context("hsm-kms", sys.argv[1:], color=colours) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _stopped(error: KeyboardInterrupt | click.Abort) -> int:
    """Say why the command stopped; click raises the same error for all answers."""
    cause = error if isinstance(error, KeyboardInterrupt) else error.__context__
    if isinstance(cause, KeyboardInterrupt):
        if sys.stderr.isatty():
            streams.tell("")  # it shows ^C
        _say("interrupted")
        return interrupts.exit_code(cause)
    if isinstance(cause, EOFError):
        streams.tell("")  # the question has no end of line
        _say(
            "stdin ended before the question was answered",
            "give the answer as an option, or on stdin",
        )
    else:
        _say("not confirmed, so nothing was changed")
    return 1


def _failed(error: HsmKmsError) -> int:
    if isinstance(error, ConfigError):
        for fault in error.faults:
            _say(fault)
        return 2
    _say(str(error), error.hint)
    if isinstance(error, CommandInterruptedError):
        return interrupts.exit_code(error.__cause__)
    return 1


def _misused(error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        streams.tell(error.format_message())
        return 2
    command = error.ctx.command_path if error.ctx else "hsm-kms"
    _say(_as_cause(error.format_message()), f"see `{command} --help`")
    return 2


def _not_text(error: UnicodeEncodeError) -> int:
    """Say that the caller gave bytes that are not UTF-8, which Python holds as such."""
    if error.reason != "surrogates not allowed":
        raise error
    _say("an argument or environment variable that is used here is not UTF-8 text")
    return 2


def _could_not_write(error: streams.OutputError) -> int:
    """Say that the output could not be written, unless nobody reads it."""
    streams.discard(sys.stdout)
    if error.errno == errno.EPIPE:
        streams.discard(sys.stderr)
        return 128 + signal.SIGPIPE
    _say(f"cannot write the output: {error.strerror}")
    return 1


def _say(cause: str, hint: str | None = None) -> None:
    streams.tell(f"hsm-kms: {cause}")
    if hint := leading_on(hint):
        streams.tell(f"hint: {hint}")


def _as_cause(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
