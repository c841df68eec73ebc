"""Define `hsm-kms`, the command line.

Results go to stdout and everything else to stderr: an error as "hsm-kms: CAUSE" in
lower case, then its cure as "hint: CURE". The exit code is 0 for success, 1 if a check
failed or the token refused, and 2 if the command line or the configuration is wrong.
"""

from __future__ import annotations

import sys

import click

from hsm_kms import __version__
from hsm_kms.cli.hints import leading_on
from hsm_kms.cli.lazy import Lazy, LazyGroup
from hsm_kms.errors import ConfigError, HsmKmsError

_COMMANDS = {
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
    "keys": Lazy(
        "hsm_kms.cli.keys:keys_group",
        "Generate, list, rotate, retire and destroy the keys on the token.",
    ),
    "etcd": Lazy(
        "hsm_kms.cli.etcd:etcd_group",
        "Count, explain and verify the values that the API server stored in etcd.",
    ),
    "migrate": Lazy(
        "hsm_kms.cli.migrate:migrate",
        "Re-encrypt existing objects.",
    ),
    "token": Lazy(
        "hsm_kms.cli.token:token_group",
        "List tokens, and try a rejected PIN once more.",
    ),
    "config": Lazy("hsm_kms.cli.config:config_group", "Show the configuration."),
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
    try:
        cli(prog_name="hsm-kms", standalone_mode=False)
    except ConfigError as error:
        for fault in error.faults:
            _say(fault)
        sys.exit(2)
    except HsmKmsError as error:
        _say(str(error), error.hint)
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "hsm-kms"
        _say(_as_cause(error.format_message()), f"see `{command} --help`")
        sys.exit(2)
    except click.Abort:
        _say("interrupted")
        sys.exit(1)


def _say(cause: str, hint: str | None = None) -> None:
    click.echo(f"hsm-kms: {cause}", err=True)
    if hint := leading_on(hint):
        click.echo(f"hint: {hint}", err=True)


def _as_cause(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
