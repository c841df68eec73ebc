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
from hsm_kms.clock import now, seconds_since, spell
from hsm_kms.errors import HsmKmsError

SECONDS = 3.0  # the API server's own default timeout
V1_VERSION = "v1beta1"
_NEVER_ASKED = "kube-apiserver has not asked (KMS v1 never does)"


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

    If the configuration is readable, also prints worker, session and PIN state from
    the admin socket. KMS v1 has no Status: if the server serves v1 alone, everything
    comes from the admin socket. Exits with 0 if healthz is ok.
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
    if output == "json":
        click.echo(json.dumps(answer | ({"server": server} if server else {})))
    else:
        for name, value in (answer | _in_short(server)).items():
            click.echo(f"{name}: {value}")
    sys.exit(0 if answer["healthz"] == "ok" else 1)


def _in_short(server: dict[str, Any] | None) -> dict[str, str]:
    """Return the parts of /status that people read, as text."""
    if server is None:
        return {}
    sessions, workers = server["sessions"], server["workers"]
    shown = _times(server) | {
        "workers": str(workers["ready"]),
        "sessions": f"{sessions['idle']} idle of {sessions['held']}",
        "breaker": server["breaker"],
        "pin": server["pin"],
    }
    for key in server["keys"]:
        if key["state"] == "pending":
            doubt = key.get("doubt") or "once keys.current names it"
            at = key["current_from"]
            shown[f"pending {key['key_id']}"] = f"from {at}" if at else doubt
        if key["state"] == "foreign":
            shown[f"foreign {key['key_id']}"] = "decrypts nothing: see keys.foreign"
    if server["state"] != "ok":
        shown = {"detail": server["detail"]} | shown
    return shown | _faults(server)


def _times(server: dict[str, Any]) -> dict[str, str]:
    """Return since when the server is as it is, and when it was asked and tried."""
    shown = {"state": f"{server['state']} for {_ago(server['since'])}"}
    ages = [
        key["activation"]
        for key in server["keys"]
        if key["key_id"] == server["key_id"] and key["activation"]
    ]
    if ages:
        shown["key age"] = spell(now() - ages[0])
    canary, asked = server["canary"], server["last_status"]
    if canary["last_success"]:
        shown["last canary"] = f"{_ago(canary['last_success'])} ago"
    if canary["last_failure"]:
        when = _ago(canary["last_failure"])
        shown["last failure"] = f"{when} ago: {canary['failure']}"
    shown["last Status"] = f"{_ago(asked)} ago" if asked else _NEVER_ASKED
    return shown


def _ago(time: str) -> str:
    return spell(seconds_since(time))


def _faults(server: dict[str, Any]) -> dict[str, str]:
    """Return what an operator must mend although the token may work."""
    shown = {
        f"http {listener['address']}": f"not listening: {listener['error']}"
        for listener in server.get("http", ())
        if listener["error"]
    }
    if server["token"].get("slow"):
        how = "slow: a canary passed, but took longer than token.call_timeout"
        shown |= {"token": how}
    if stuck := server["workers"].get("unkillable"):
        pids = ", ".join(map(str, stuck))
        shown["workers that cannot be killed"] = (
            f"process {pids}; a call hangs in the kernel: repair the driver that the "
            "PKCS#11 module uses, or reboot the node"
        )
    config = server.get("config", {"in_force": True})
    if not config["in_force"]:
        shown["config"] = f"not in force since {config['since']}: {config['error']}"
    return shown


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
    try:
        with grpc.insecure_channel(f"unix:{socket.resolve()}", options) as channel:
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
