"""Provide `hsm-kms serve`: run the server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from hsm_kms import interrupts, log
from hsm_kms.cli.options import config_option
from hsm_kms.server.config_file import ConfigFile

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
def serve(path: Path) -> None:
    """Serve the Kubernetes KMS API until SIGTERM.

    If the token is unavailable, the PIN is rejected or a key is missing, the server
    keeps running, reports it in Status and retries. It exits with 2 if the
    configuration file is invalid, and with 1 if it cannot take the socket, or if
    another server uses the state directory. After Ctrl-C it exits with 130.
    """
    file = ConfigFile(path)
    config = file.load()
    log.configure(config.log.level, config.log.format)
    # gRPC's C core would write lines of its own to stderr.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with interrupts.exiting():
        from hsm_kms.server import serve as server  # noqa: PLC0415 - grpc takes a third of a second

    if asyncio.run(server.serve(file, config)) == signal.SIGINT:
        sys.exit(128 + signal.SIGINT)
