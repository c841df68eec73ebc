"""Provide `hsm-kms status`: print what the API server would see."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hsm_kms import interrupts
from hsm_kms.cli.listening import require_kms
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.status.findings import V1_VERSION, findings
from hsm_kms.cli.status.screen import show
from hsm_kms.config.formats import grpc_target
from hsm_kms.errors import HsmKmsError

SECONDS = 3.0  # the API server's own default timeout


@click.command()
@config_option
@click.option(
    "--socket",
    type=click.Path(path_type=Path, readable=False),
    help="Ask this KMS socket, and read no configuration.",
)
@output_option
def status(path: Path, socket: Path | None, output: str) -> None:
    """Ask a running server for its Status over the KMS socket.

    If the configuration is readable, also prints from the admin socket since when the
    server is as it is, cause and cure, what must be mended (lines that begin with !),
    keys, requests, token and configuration. KMS v1 has no Status: if the server serves
    v1 alone, everything comes from the admin socket. Exits with 0 if healthz is ok.
    """
    server = None
    if socket is None:
        # pydantic and http.client take longer to load than anything else but gRPC.
        with interrupts.exiting():
            from hsm_kms.config.load import load  # noqa: PLC0415
            from hsm_kms.http.client import read_status  # noqa: PLC0415

        config = load(path)
        socket, admin = config.listen.socket, config.http.admin_socket
        server = read_status(admin) if admin else None
    answer = _ask(socket, server)
    found = findings(server, answer["version"]) if server else []
    if output == "json":
        as_json = {"findings": [each._asdict() for each in found]}
        click.echo(
            json.dumps(answer | as_json | ({"server": server} if server else {}))
        )
    else:
        show(answer, server, found)
    sys.exit(0 if answer["healthz"] == "ok" else 1)


def _why_none(server: dict[str, Any] | None) -> str:
    """Return what the server itself says about the cause, or who else may know."""
    if server is None:
        return "read the server's log, and run `hsm-kms check`"
    if server["key_id"] and not server["status_available"]:
        return f"health.stop_writes_after has passed: {server['detail']}"
    return f"the server says: {server['detail']}"


def _ask(socket: Path, server: dict[str, Any] | None) -> dict[str, str]:
    require_kms(socket)
    with interrupts.exiting():
        import grpc  # noqa: PLC0415 - takes a third of a second

        from hsm_kms.api.call import OBSERVER  # noqa: PLC0415
        from hsm_kms.api.rpc import kms_v2_pb2, kms_v2_pb2_grpc  # noqa: PLC0415

    options = [("grpc.default_authority", "localhost")]
    target = grpc_target(socket.resolve())
    try:
        with interrupts.exiting(), grpc.insecure_channel(target, options) as channel:
            stub = kms_v2_pb2_grpc.KeyManagementServiceStub(channel)  # type: ignore[no-untyped-call]
            # Without OBSERVER this would announce a new key, which the API server must
            # learn first: v2 encrypts under the key announced last.
            reply = stub.Status(
                kms_v2_pb2.StatusRequest(), timeout=SECONDS, metadata=[(OBSERVER, "1")]
            )
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            if server is not None:
                known = {name: server[name] for name in ("healthz", "key_id")}
                return known | {"version": V1_VERSION}
            raise HsmKmsError(
                f"no Status from {socket}: the plugin does not serve KMS v2",
                hint=f"to try KMS v1, run `hsm-kms probe --socket {socket}`",
            ) from None
        raise HsmKmsError(
            f"no Status from {socket}: {error.code().name}: {error.details()}",
            hint=_why_none(server),
        ) from None
    return {
        "healthz": reply.healthz,
        "key_id": reply.key_id,
        "version": reply.version,
    }
