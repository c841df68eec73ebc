"""Choose where stored values are read from: etcd, a JSON file or a snapshot."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.options import SECONDS_TYPE
from hsm_kms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.etcd.source import Item, Source

DEFAULT_ENDPOINT: Final = "127.0.0.1:2379"
STDIN: Final = Path("-")
_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_BAR_CHARS: Final = 36
_REDRAW_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdChoice:
    """Hold the source of stored values, as given on the command line.

    Args:
        endpoints: Endpoints of etcd, as etcdctl takes them; empty for the default.
        cacert: PEM file of the CA that signed the server's certificate, or None.
        cert: PEM file of the client's certificate, or None.
        key: PEM file of the private key for `cert`, or None.
        user: Name of an etcd user, "" for none.
        password: Password of the user.
        dial_timeout: Timeout to connect to one endpoint, in seconds.
        command_timeout: Timeout of one request, in seconds.
        prefix: Prefix of the keys to read.
        from_json: File with the output of `etcdctl get --prefix -w json`; "-" is
            stdin.
        from_snapshot: File written by `etcdctl snapshot save`.
    """

    endpoints: tuple[str, ...] = ()
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    dial_timeout: float = 2.0
    command_timeout: float = 10.0
    prefix: str = "/registry/"
    from_json: Path | None = None
    from_snapshot: Path | None = None

    @property
    def named(self) -> bool:
        """Return True if a source was given, False if the default endpoint is used."""
        return bool(self.endpoints or self.from_json or self.from_snapshot)


def _positive(_: click.Context, __: click.Parameter, seconds: float) -> float:
    if seconds <= 0:
        raise click.BadParameter("must be more than 0s")
    return seconds


def _timeout_option(name: str, default: str, meaning: str) -> Callable[..., Any]:
    return click.option(
        name,
        envvar=f"ETCDCTL_{name.removeprefix('--').replace('-', '_').upper()}",
        metavar="TIME",
        type=SECONDS_TYPE,
        callback=_positive,
        default=default,
        show_default=True,
        help=meaning,
    )


_OPTIONS: Final = (
    click.option(
        "--endpoints",
        envvar="ETCDCTL_ENDPOINTS",
        metavar="URL[,URL]",
        help=f"Endpoints of etcd, tried in turn.  [default: {DEFAULT_ENDPOINT}]",
    ),
    click.option(
        "--cacert",
        envvar="ETCDCTL_CACERT",
        type=_FILE,
        help="CA that signed the server's certificate.",
    ),
    click.option(
        "--cert", envvar="ETCDCTL_CERT", type=_FILE, help="The client's certificate."
    ),
    click.option("--key", envvar="ETCDCTL_KEY", type=_FILE, help="The key of --cert."),
    click.option(
        "--user",
        envvar="ETCDCTL_USER",
        metavar="NAME[:PASSWORD]",
        help="User of etcd; asks for the password if none is given.",
    ),
    click.option(
        "--password",
        envvar="ETCDCTL_PASSWORD",
        help="Password of --user; set the variable, so that other users cannot see it.",
    ),
    _timeout_option("--dial-timeout", "2s", "Timeout to connect to one endpoint."),
    _timeout_option("--command-timeout", "10s", "Timeout of one request."),
    click.option(
        "--prefix",
        default="/registry/",
        show_default=True,
        help="Prefix of the keys: the API server's --etcd-prefix and a slash.",
    ),
    click.option(
        "--from-json",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        help="Read the output of `etcdctl get --prefix / -w json` instead; - is stdin.",
    ),
    click.option(
        "--from-snapshot",
        type=_FILE,
        help="Read a snapshot instead; etcd and etcdutl must be in PATH.",
    ),
)
_NAMES: Final = (
    *("endpoints", "cacert", "cert", "key", "user", "password", "dial_timeout"),
    *("command_timeout", "prefix", "from_json", "from_snapshot"),
)


def etcd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as `etcd: EtcdChoice`."""

    @functools.wraps(command)
    def with_choice(*args: Any, **options: Any) -> Any:
        taken = {name: options.pop(name) for name in _NAMES}
        return command(*args, etcd=_choice(**taken), **options)

    made: Callable[..., Any] = with_choice
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def _choice(
    *, endpoints: str | None, user: str | None, password: str | None, **others: Any
) -> EtcdChoice:
    if others["from_json"] and others["from_snapshot"]:
        raise ConfigError(["--from-json and --from-snapshot exclude each other"])
    if bool(others["cert"]) != bool(others["key"]):
        raise ConfigError(["--cert and --key must be given together"])
    named = (each.strip() for each in (endpoints or "").split(","))
    name, secret = ("", "") if others["from_json"] else _login(user, password)
    return EtcdChoice(
        endpoints=tuple(each for each in named if each),
        user=name,
        password=secret,
        **others,
    )


def _login(user: str | None, password: str | None) -> tuple[str, str]:
    """Return name and password, both "" if there is no user."""
    name, colon, rest = (user or "").partition(":")
    if not name:
        if password or colon:
            raise ConfigError(["--password needs --user"])
        return "", ""
    if colon:
        if password is not None:
            raise ConfigError(["the password is given in both --user and --password"])
        return name, rest
    if password is None:
        password = click.prompt(f"Password of {name}", hide_input=True, err=True)
    return name, password


def open_source(choice: EtcdChoice) -> Source:
    """Return the chosen source, not open yet.

    Raises:
        ConfigError: An endpoint is not valid.
        EtcdError: A certificate or key file is not valid.
    """
    prefix = choice.prefix.encode("utf-8", "surrogateescape")
    if choice.from_json:
        from hsm_kms.etcd.json_file import JsonFile  # noqa: PLC0415

        return JsonFile(choice.from_json, prefix=prefix)
    # The C core of gRPC would write to stderr.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from hsm_kms.etcd.connection import Login  # noqa: PLC0415
    from hsm_kms.etcd.live import Access, Etcd  # noqa: PLC0415

    access = Access(
        cacert=choice.cacert,
        cert=choice.cert,
        key=choice.key,
        login=Login(choice.user, choice.password) if choice.user else None,
        dial_timeout=choice.dial_timeout,
        command_timeout=choice.command_timeout,
    )
    if choice.from_snapshot:
        from hsm_kms.etcd.snapshot import Snapshot  # noqa: PLC0415

        return Snapshot(choice.from_snapshot, access.login, prefix=prefix)
    return Etcd(choice.endpoints or (DEFAULT_ENDPOINT,), access, prefix=prefix)


@contextlib.contextmanager
def progress_bar(source: Source, doing: str) -> Iterator[Callable[[Item], None]]:
    """Show a progress bar if stderr is a terminal; yield what to call with each item.

    Args:
        source: Source, open, which knows how much of it has been read.
        doing: Verb for the bar, such as "scanning".
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = _Bar(source, doing)
    try:
        yield bar.step
    finally:
        bar.draw()
        click.echo(err=True)


class _Bar:
    """Show the progress in one line, redrawn at most ten times a second."""

    def __init__(self, source: Source, doing: str) -> None:
        self._source = source
        self._doing = doing
        self._items = 0
        self._due = 0.0

    def step(self, _: Item) -> None:
        """Count one more item."""
        self._items += 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REDRAW_SECONDS
            self.draw()

    def draw(self) -> None:
        """Draw the line, without a bar if the total is unknown."""
        words = [self._doing]
        share = self._source.share()
        if share is not None:
            done = min(_BAR_CHARS, round(share * _BAR_CHARS))
            words.append(f"[{'#' * done}{'-' * (_BAR_CHARS - done)}]")
            words.append(f"{min(1.0, share):4.0%}")
        words.append(f"{self._items:,} objects")
        click.echo("\r" + "  ".join(words), nl=False, err=True)
