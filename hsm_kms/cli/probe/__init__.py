"""Provide `hsm-kms probe`: try any KMS plugin through its socket.

It reads no configuration and takes nothing. `examination` makes the calls, `rules` is
what kube-apiserver wants of the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import click
import msgspec

from hsm_kms import interrupts
from hsm_kms.cli.options import SECONDS_TYPE, output_option, positive
from hsm_kms.cli.report import Report, because
from hsm_kms.cli.waiting import until_well, wait_option
from hsm_kms.errors import HsmKmsError
from hsm_kms.server import api_servers

if TYPE_CHECKING:
    from hsm_kms.cli.probe.examination import Request, Result
    from hsm_kms.cli.report import Finding
    from hsm_kms.server.api_servers import ApiServer

_ANY: Final = 0  # the API server is looked for
_URL: Final = "unix://"


def _socket(_ctx: click.Context, _param: click.Parameter, given: str) -> Path:
    if given.startswith("unix:"):
        path = given.removeprefix(_URL)
        if not path.startswith("/"):
            raise click.BadParameter("must be a path, or unix:// and an absolute path")
        return Path(path)
    return Path(given)


@click.command()
@click.option(
    "--socket",
    required=True,
    callback=_socket,
    help="The KMS socket: a path, or the endpoint of an EncryptionConfiguration.",
)
@click.option(
    "--api",
    type=click.Choice(["auto", "v2", "v1"]),
    default="auto",
    help="Try KMS v2 or v1; by default v2, or v1 if the plugin serves no v2.",
)
@click.option(
    "--as-apiserver",
    "process",
    type=int,
    is_flag=False,
    flag_value=_ANY,
    metavar="[PROCESS]",
    help="Try with user, groups and capabilities of the running kube-apiserver.",
)
@click.option(
    "--expected-key-id",
    metavar="KEY_ID",
    help="Fail unless the plugin reports this key_id.",
)
@click.option(
    "--timeout",
    type=SECONDS_TYPE,
    callback=positive,
    metavar="DURATION",
    default="3s",
    show_default=True,
    help="How long a call may take, as in the EncryptionConfiguration.",
)
@wait_option
@output_option
def probe(  # noqa: PLR0913 - one per option
    socket: Path,
    *,
    api: Literal["auto", "v2", "v1"],
    process: int | None,
    expected_key_id: str | None,
    timeout: float,
    seconds: float,
    output: str,
) -> None:
    """Try Status, Encrypt and Decrypt of any KMS plugin through its socket.

    Encrypts and decrypts random bytes five times, checks the answers as kube-apiserver
    does, and says what a call costs. Reads no configuration. With --as-apiserver, run
    as root on a control-plane node, finds a mode, a group or a mount that would keep
    kube-apiserver from the socket, before it does. Exits with 1 if anything fails.
    """
    with interrupts.exiting():  # gRPC takes a third of a second
        from hsm_kms.cli.probe.examination import Request  # noqa: PLC0415

    request = Request(
        socket=str(socket), api=api, timeout=timeout, expected_key_id=expected_key_id
    )
    ended = until_well(lambda: _attempt(request, process), seconds)
    if output == "json":
        click.echo(json.dumps(_shown(request, ended)))
    else:
        ended.report.show()
        ended.report.sum_up()
    sys.exit(1 if ended.failures else 0)


class _Attempt(NamedTuple):
    """Hold what one attempt found.

    Args:
        report: All findings.
        result: What the plugin answered; None if it could not be tried.
        server: The API server as which it was tried, or None.
    """

    report: Report
    result: Result | None
    server: ApiServer | None

    @property
    def failures(self) -> list[Finding]:
        """Return what is wrong."""
        return self.report.failures


def _attempt(request: Request, process: int | None) -> _Attempt:
    from hsm_kms.cli.probe import as_api_server, examination  # noqa: PLC0415

    report = Report()
    if process is None:
        result = examination.examine(request)
        report.take(result.findings)
        return _Attempt(report, result, None)
    server = None
    try:
        server = api_servers.the_api_server(process or None)
        result = as_api_server.examine_as(server.credentials, request)
    except HsmKmsError as error:
        report.fail("api-server", "kube-apiserver", error)
        report.skip((*examination.STEPS, "mount"), because("api-server"))
        return _Attempt(report, None, server)
    what = f"kube-apiserver: process {server.pid}, {server.credentials}"
    report.ok("api-server", what)
    _warn_of_label(report, server.pid, request.socket)
    report.take(result.findings)
    _check_mount(report, server.pid, Path(request.socket).absolute())
    return _Attempt(report, result, server)


def _warn_of_label(report: Report, pid: int, socket: str) -> None:
    """Say that SELinux may deny to the API server what it allows this command."""
    label, mine = api_servers.selinux_label(pid), api_servers.selinux_label("self")
    if label and label != mine:
        report.warn(
            "api-server",
            f"SELinux: kube-apiserver runs as {label}, and this command as {mine}, so "
            "what SELinux denies to kube-apiserver alone is not found",
            f"to try that, run `runcon {label} hsm-kms probe --socket {socket}`",
        )


def _check_mount(report: Report, pid: int, socket: Path) -> None:
    """Compare what the API server has at the path of the socket, in its container."""
    if report.missing(["socket"]):
        report.skip(["mount"], because("socket"))
        return
    try:
        same = api_servers.has_same_file(pid, socket)
    except OSError as error:
        report.warn(
            "mount", f"what process {pid} has mounted is unknown: {error.strerror}"
        )
        return
    if same:
        report.ok("mount", f"mount: kube-apiserver sees the same socket at {socket}")
    elif same is None:
        report.warn(
            "mount",
            f"mount: kube-apiserver has nothing at {socket}",
            "mount the directory into its pod, unless `endpoint` names another path",
        )
    else:
        cause = f"kube-apiserver has another file at {socket}"
        hint = "mount its directory into the pod, and not the socket itself"
        report.fail("mount", "mount", HsmKmsError(cause, hint=hint))


def _shown(request: Request, ended: _Attempt) -> dict[str, Any]:
    server, result = ended.server, ended.result
    shown: dict[str, Any] = {"socket": request.socket, "as": None}
    if server is not None:
        who = server.credentials
        groups = list(who.groups)
        shown["as"] = {"uid": who.uid, "gid": who.gid, "groups": groups}
        shown["as"] |= {"process": server.pid}
    for name in ("api", "version", "healthz", "key_id", "milliseconds"):
        shown[name] = msgspec.to_builtins(getattr(result, name)) if result else None
    return ended.report.as_json() | shown
