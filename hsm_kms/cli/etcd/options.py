"""Choose where stored values are read from: etcd, a JSON file or a snapshot."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from hsm_kms import interrupts
from hsm_kms.cli.ask import ask_secret
from hsm_kms.cli.etcd import etcdctl
from hsm_kms.cli.etcd.etcdctl import variable
from hsm_kms.cli.options import SECONDS_TYPE, positive, with_options
from hsm_kms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.etcd.source import Source

DEFAULT_ENDPOINT: Final = "127.0.0.1:2379"
STDIN: Final = Path("-")
_FILE: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdChoice:
    """Hold the source of stored values, as given on the command line.

    Args:
        endpoints: Endpoints of etcd, as etcdctl takes them; empty for the default.
        cacert: PEM file of the CA that signed the server's certificate, or None. This
            and the next two can be "-", stdin, which is then one stream for all.
        cert: PEM file of the client's certificate, or None.
        key: PEM file of the private key for `cert`, or None.
        tls_server_name: Name in the server's certificate; None for the endpoint's host.
        secured: True if an endpoint without a scheme uses TLS in any case.
        user: Name of an etcd user, "" for none.
        password: Password of the user.
        dial_timeout: Timeout to connect to one endpoint, in seconds.
        command_timeout: Timeout of one request, in seconds.
        prefix: Prefix of the keys to read.
        from_json: File with the output of `etcdctl get --prefix -w json`; "-" is
            stdin.
        from_snapshot: File written by `etcdctl snapshot save`, or a copied database.
        skip_hash_check: Accept a snapshot without a hash.
        refused: What is wrong with options that a live etcd would need.
    """

    endpoints: tuple[str, ...] = ()
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls_server_name: str | None = None
    secured: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    dial_timeout: float = 2.0
    command_timeout: float = 10.0
    prefix: str = "/registry/"
    from_json: Path | None = None
    from_snapshot: Path | None = None
    skip_hash_check: bool = False
    refused: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Return True if a source was given, False if the default endpoint is used."""
        return bool(self.endpoints or self.from_json or self.from_snapshot)


def _timeout_option(name: str, default: str, meaning: str) -> Callable[..., Any]:
    return click.option(
        name,
        envvar=variable(name),
        metavar="TIME",
        type=SECONDS_TYPE,
        callback=positive,
        default=default,
        show_default=True,
        help=meaning,
    )


_OPTIONS: Final = (
    click.option(
        "--endpoints",
        envvar="ETCDCTL_ENDPOINTS",
        multiple=True,
        metavar="URL[,URL]",
        help=f"Endpoints of etcd, tried in turn.  [default: {DEFAULT_ENDPOINT}]",
    ),
    click.option(
        "--cacert",
        envvar="ETCDCTL_CACERT",
        type=_FILE,
        help="CA that signed the server's certificate; - is stdin, also for --cert "
        "and --key: all three in one stream, the client's certificate first.",
    ),
    click.option(
        "--cert", envvar="ETCDCTL_CERT", type=_FILE, help="The client's certificate."
    ),
    click.option("--key", envvar="ETCDCTL_KEY", type=_FILE, help="The key of --cert."),
    click.option(
        "--tls-server-name",
        metavar="NAME",
        help="Name in the server's certificate, if not the host in --endpoints.",
    ),
    etcdctl.INSECURE_TRANSPORT,
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
        type=click.Path(path_type=Path),
        help="Read a snapshot instead, also one in a .gz or .zip file; etcd and "
        "etcdutl must be in PATH.",
    ),
    click.option(
        "--skip-hash-check",
        is_flag=True,
        help="Accept as --from-snapshot a copy of member/snap/db, which has no hash.",
    ),
    *etcdctl.OPTIONS,
)
_NAMES: Final = (
    *("endpoints", "cacert", "cert", "key", "tls_server_name", "insecure_transport"),
    *("user", "password", "dial_timeout", "command_timeout"),
    *("prefix", "from_json", "from_snapshot", "skip_hash_check"),
)


def etcd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as `etcd: EtcdChoice`."""

    @functools.wraps(command)
    def with_choice(*args: Any, **options: Any) -> Any:
        taken = {name: options.pop(name) for name in _NAMES}
        context = click.get_current_context()
        refused = tuple(etcdctl.refusals(context, options))
        if context.get_parameter_source("password") is ParameterSource.ENVIRONMENT:
            taken["password"] = taken["user"] and taken["password"]  # as etcdctl does
        return command(*args, etcd=_choice(refused=refused, **taken), **options)

    return with_options(with_choice, _OPTIONS)


def _choice(
    *,
    endpoints: tuple[str, ...],
    user: str | None,
    password: str | None,
    insecure_transport: bool | None,
    **others: Any,
) -> EtcdChoice:
    if others["from_json"] and others["from_snapshot"]:
        raise ConfigError(["--from-json and --from-snapshot exclude each other"])
    if others["skip_hash_check"] and not others["from_snapshot"]:
        raise ConfigError(["--skip-hash-check needs --from-snapshot"])
    if bool(others["cert"]) != bool(others["key"]):
        raise ConfigError(["--cert and --key must be given together"])
    stripped = (each.strip() for each in ",".join(endpoints).split(","))
    named = tuple(each for each in stripped if each)
    if endpoints and not named:  # an unset variable must not become another etcd
        raise ConfigError(["--endpoints names no endpoint"])
    name, secret = ("", "") if others["from_json"] else _login(user, password)
    return EtcdChoice(
        endpoints=named,
        secured=insecure_transport is False,
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
        password = ask_secret(f"Password of {name}")
    return name, password


@contextlib.contextmanager
def stdin_kept(choice: EtcdChoice) -> Iterator[EtcdChoice]:
    """Keep TLS files from stdin in memory, so that etcd can be opened several times.

    Raises:
        EtcdError: stdin is a terminal, empty or too long.
    """
    if STDIN not in {choice.cacert, choice.cert, choice.key}:
        yield choice
        return
    from hsm_kms.etcd.tls import read_stdin  # noqa: PLC0415

    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(read_stdin())
        file.flush()
        kept = {STDIN: Path(f"/proc/self/fd/{file.fileno()}")}
        yield replace(
            choice,
            cacert=choice.cacert and kept.get(choice.cacert, choice.cacert),
            cert=choice.cert and kept.get(choice.cert, choice.cert),
            key=choice.key and kept.get(choice.key, choice.key),
        )


def reading(choice: EtcdChoice) -> contextlib.AbstractContextManager[None]:
    """Exit at once on Ctrl-C in a `with` block that only reads a live etcd.

    KeyboardInterrupt, raised inside gRPC, can leave it waiting for itself.
    """
    if choice.from_json or choice.from_snapshot:
        return contextlib.nullcontext()  # a snapshot's etcd and files must go
    return interrupts.exiting()


def open_source(choice: EtcdChoice) -> Source:
    """Return the chosen source, not open yet.

    Raises:
        ConfigError: An endpoint is not valid, or an option is not supported.
        EtcdError: A certificate or key file is not valid.
    """
    prefix = choice.prefix.encode("utf-8", "surrogateescape")
    if choice.from_json:
        from hsm_kms.etcd.json_file import JsonFile  # noqa: PLC0415

        return JsonFile(choice.from_json, prefix=prefix)
    # The C core of gRPC would write to stderr.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with interrupts.exiting():
        from hsm_kms.etcd.connection import Login  # noqa: PLC0415
        from hsm_kms.etcd.live import Access, Etcd  # noqa: PLC0415

    access = Access(
        cacert=choice.cacert,
        cert=choice.cert,
        key=choice.key,
        tls_server_name=choice.tls_server_name,
        secured=choice.secured,
        login=Login(choice.user, choice.password) if choice.user else None,
        dial_timeout=choice.dial_timeout,
        command_timeout=choice.command_timeout,
    )
    if choice.from_snapshot:
        from hsm_kms.etcd.snapshot import Snapshot  # noqa: PLC0415

        return Snapshot(
            choice.from_snapshot,
            access.login,
            prefix=prefix,
            skip_hash_check=choice.skip_hash_check,
        )
    if choice.refused:
        raise ConfigError(choice.refused)
    return Etcd(choice.endpoints or (DEFAULT_ENDPOINT,), access, prefix=prefix)
