"""Define the options of `rotation start` and `rotation resume`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.etcd.options import etcd_options
from hsm_kms.cli.keys.options import Given
from hsm_kms.cli.keys.unused import require_live
from hsm_kms.cli.migrate.options import (
    allow_changes_option,
    kubectl_options,
    rate_option,
    resource_option,
)
from hsm_kms.cli.nodes import SourceType
from hsm_kms.cli.one_worker import login_options
from hsm_kms.cli.options import SECONDS_TYPE, config_option, with_options
from hsm_kms.cli.rotation.journal import journal_file, journal_option
from hsm_kms.cli.rotation.methods import NAMES
from hsm_kms.cli.rotation.world import Means
from hsm_kms.config import load as configuration
from hsm_kms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.cli.nodes import Source

_OPTIONS: Final = (
    click.option(
        "--node",
        "sources",
        metavar="NODE",
        multiple=True,
        type=SourceType(),
        help="A node of the cluster: HOST, HOST:PORT or FILE, as for `hsm-kms nodes`. "
        "Name all of them.  [may be repeated]",
    ),
    click.option(
        "--with",
        "method",
        type=click.Choice(NAMES),
        help="How objects are re-encrypted: by `hsm-kms migrate`, by the cluster's own "
        "StorageVersionMigration, or by you elsewhere, where your kubectl is.",
    ),
    click.option(
        "--wait",
        "wait",
        type=SECONDS_TYPE,
        metavar="DURATION",
        default="30m",
        show_default=True,
        help="How long to wait for nodes, or for the cluster, in one step.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print what is seen now and what would be done, and change nothing.",
    ),
    journal_option,
    resource_option(()),
    kubectl_options,
    rate_option,
    allow_changes_option,
    etcd_options,
    login_options,
    config_option,
)


def rotation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets `means`, `file` and `nodes` made of them."""

    @functools.wraps(command)
    def with_means(
        *,
        path: Path,
        journal: Path | None,
        sources: tuple[Source, ...],
        etcd: EtcdChoice,
        **more: Any,
    ) -> Any:
        config = configuration.load(path)
        require_live(etcd)
        if not etcd.named:
            raise ConfigError(["no etcd endpoint: give --endpoints"])
        means = Means(
            given=Given(config=config, login=more.pop("login"), as_json=False),
            etcd=etcd,
            **{name: more.pop(name) for name in ("kubectl", "rate", "wait")},
            allow_changes=more.pop("allow_changes"),
            force=more.pop("force", False),
        )
        file = journal_file(config, journal)
        return command(means=means, file=file, nodes=_names(sources), **more)

    return with_options(with_means, _OPTIONS)


def _names(sources: tuple[Source, ...]) -> list[str]:
    """Return how the journal names the nodes, whatever the working directory is."""
    names = (
        each.name if each.file is None else str(each.file.absolute())
        for each in sources
    )
    return list(dict.fromkeys(names))
