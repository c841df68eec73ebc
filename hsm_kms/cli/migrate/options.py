"""Define the options of the commands that re-encrypt through the API server."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.options import with_options
from hsm_kms.migrate.kubectl import Kubectl

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_RESOURCES: Final = ("secrets",)

_KUBECTL: Final = (
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="The kubeconfig for kubectl, if not its default.",
    ),
    click.option("--context", help="The kubeconfig context for kubectl."),
    click.option(
        "--kubectl",
        "program",
        default="kubectl",
        show_default=True,
        metavar="COMMAND",
        help="The kubectl to use: a path, or a command such as 'k3s kubectl'.",
    ),
)

rate_option = click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="At most this many objects per second.",
)
allow_changes_option = click.option(
    "--allow-changes",
    is_flag=True,
    help="Exit with 0 even if the cluster changed objects when they were written.",
)


def resource_option(default: tuple[str, ...]) -> Callable[..., Any]:
    """Return the option that names resources, which a command gets as `names`.

    Args:
        default: The resources if none is named.
    """
    return click.option(
        "--resource",
        "names",
        multiple=True,
        default=default,
        show_default=bool(default),
        metavar="NAME",
        help="Resource to re-encrypt, as an EncryptionConfiguration names it: secrets, "
        "configmaps, deployments.apps, *.apps, *.* for everything. Can be repeated.",
    )


def kubectl_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as `kubectl: Kubectl`."""

    @functools.wraps(command)
    def with_kubectl(
        *args: Any,
        kubeconfig: Path | None,
        context: str | None,
        program: str,
        **more: Any,
    ) -> Any:
        kubectl = Kubectl(program=program, kubeconfig=kubeconfig, context=context)
        return command(*args, kubectl=kubectl, **more)

    return with_options(with_kubectl, _KUBECTL)
