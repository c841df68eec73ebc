"""Take the options of etcdctl 3.6 that are not needed here, or refuse them by name.

Each option has a variable ETCDCTL_*, as for etcdctl. What says only how etcdctl works
or prints is taken and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_USE_ENDPOINTS: Final = "give the endpoints that its SRV records name as --endpoints"
_REFUSED: Final = {
    "--discovery-srv": _USE_ENDPOINTS,
    "--discovery-srv-name": _USE_ENDPOINTS,
    "--insecure-skip-tls-verify": "give the CA as --cacert, because a key may be "
    "destroyed on what this etcd answers",
}
_WRITE_OUT: Final = "use -o text or -o json"  # ETCDCTL_WRITE_OUT is for etcdctl alone


class _BooleanType(click.ParamType[bool]):
    name = "boolean"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        """Return what Go takes the word for."""
        if isinstance(value, bool):
            return value
        if value not in _BOOLEANS:
            self.fail(f"{value!r} is neither true nor false", param, ctx)
        return _BOOLEANS[value]


def variable(name: str) -> str:
    """Return the environment variable that etcdctl reads for an option."""
    return f"ETCDCTL_{name.removeprefix('--').replace('-', '_').upper()}"


class EtcdCommand(click.Command):
    """Take booleans of etcdctl without a value, too; click would take the next word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, in which --NAME of a boolean means --NAME=true."""
        booleans = {
            name
            for each in self.params
            if isinstance(each.type, _BooleanType)
            for name in each.opts
        }
        given = [f"{each}=true" if each in booleans else each for each in args]
        return super().parse_args(ctx, given)


def _boolean_option(name: str, **attrs: Any) -> Callable[..., Any]:
    """Return an option that `EtcdCommand` takes as --NAME or --NAME=VALUE.

    Args:
        name: The name, with its dashes.
        attrs: More arguments of `click.option`.
    """
    return click.option(
        name,
        envvar=variable(name),
        type=_BooleanType(),
        metavar="BOOLEAN",
        **attrs,
    )


def _unused(name: str, *, boolean: bool = False) -> Callable[..., Any]:
    if boolean:
        return _boolean_option(name, hidden=True, expose_value=False)
    return click.option(name, hidden=True, expose_value=False)


def _refuse_write_out(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(f"--write-out is an option of etcdctl: {_WRITE_OUT}")


INSECURE_TRANSPORT: Final = _boolean_option(
    "--insecure-transport",
    help="With false, host:port without a scheme means TLS also without --cacert.",
)
OPTIONS: Final = (
    *(_unused(name, boolean=True) for name in ("--debug", "--hex")),
    _unused("--insecure-discovery", boolean=True),
    *(_unused(f"--keepalive-{name}") for name in ("time", "timeout")),
    *(_unused(f"--max-{name}-bytes") for name in ("recv", "request")),
    click.option(
        *("-w", "--write-out"),
        hidden=True,
        expose_value=False,
        callback=_refuse_write_out,
    ),
    click.option(
        *("-d", "--discovery-srv"), envvar=variable("--discovery-srv"), hidden=True
    ),
    click.option(
        "--discovery-srv-name", envvar=variable("--discovery-srv-name"), hidden=True
    ),
    _boolean_option("--insecure-skip-tls-verify", hidden=True),
)


def refusals(context: click.Context, options: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the options that cannot be obeyed.

    Args:
        context: The context of the command.
        options: Its options; what is refused here is taken out of them.
    """
    for name, cure in _REFUSED.items():
        parameter = name.removeprefix("--").replace("-", "_")
        if options.pop(parameter):
            source = context.get_parameter_source(parameter)
            given = variable(name) if source is ParameterSource.ENVIRONMENT else name
            yield f"{given} is not supported: {cure}"
