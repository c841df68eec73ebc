"""Check what can be seen without the token: files, user, socket, HTTP.

Everything that `serve` does at its start is tried here by the code that does it there,
without creating, writing or taking anything.
"""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.cli.check.audit import check_audit
from hsm_kms.cli.listening import require_kms
from hsm_kms.cli.modules import absent, faults_of
from hsm_kms.cli.report import because
from hsm_kms.errors import (
    HsmKmsError,
    PinSettlingError,
    SocketError,
    WrongUserError,
)
from hsm_kms.http.address import TcpAddress, UnixAddress
from hsm_kms.server import mounts, settings
from hsm_kms.server.socket_path import live_server, require_usable
from hsm_kms.server.writable import weaknesses
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.pin_verdict import PinVerdict
from hsm_kms.users import install_line, require_service_user

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.cli.report import Report
    from hsm_kms.config.schema import Config
    from hsm_kms.http.address import Address

STEPS: Final = (
    "permissions",
    "state-directory",
    "audit",
    "module",
    "pin",
    "kms-socket",
    "http-port",
    "admin-socket",
)
_HTTP_STEPS: Final = {"tcp": "http-port", "unix": "admin-socket"}


def check_user(report: Report, config: Config) -> None:
    """Check that this process runs as the user of the server."""
    try:
        require_service_user(config.state_dir, config.token.pin_file)
    except WrongUserError as error:
        report.fail("user", "user", error)


def check_node(report: Report, config: Config, path: Path) -> None:
    """Check everything but the token.

    Args:
        report: Takes the findings.
        config: The configuration.
        path: The file it came from.
    """
    state = StateDir(config.state_dir, create=False)
    _check_writable(report, config, path)
    _check_state(report, state)
    check_audit(report, config.audit)
    _check_module(report, config)
    _check_pin(report, config, state)
    running = _check_socket(report, config)
    _check_http(report, config, running=running)


def _check_writable(report: Report, config: Config, path: Path) -> None:
    found = weaknesses(config, path)
    for each in found:
        error = HsmKmsError(each.cause, hint=f"run {each.cure}")
        report.fail("permissions", each.setting, error)
    if not found:
        what = "no other user can change configuration, module, PIN file or state"
        report.ok("permissions", what)
    for setting, cause in mounts.mounted_files(config, path).items():
        report.warn("permissions", f"{setting}: {cause}", hint=mounts.CURE)


def _check_state(report: Report, state: StateDir) -> None:
    try:
        state.prepare()
        state.last_key()
        state.key_work()
    except HsmKmsError as error:
        report.fail("state-directory", "state directory", error)
        return
    report.ok("state-directory", f"state directory {state.path}")


def _check_module(report: Report, config: Config) -> None:
    module = config.token.module
    try:
        with module.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        report.fail("module", "module", absent(module, error))
        return
    report.ok("module", f"module {module}, SHA-256 {digest}")
    for fault in faults_of(config.token.env):
        report.fail("module", "module", fault)


def _check_pin(report: Report, config: Config, state: StateDir) -> None:
    source = settings.pin_source(config)
    if source is None:
        report.ok("pin", "no login needed (token.login: none)")
        return
    try:
        PinVerdict(source, state).check()
    except PinSettlingError:
        pass  # one_worker waits until the file is stable
    except HsmKmsError as error:
        if state.failure is not None and error.hint == state.failure.hint:
            report.skip(["pin"], because("state-directory"))
            return
        report.fail("pin", "PIN", error)
        return
    report.ok("pin", f"PIN file {source.path}")


def _check_socket(report: Report, config: Config) -> bool:
    """Check the KMS socket; return True if a server uses it."""
    listen = config.listen
    try:
        require_usable(listen.socket, listen.group)
        pid = live_server(listen.socket)
    except SocketError as error:
        report.fail("kms-socket", "KMS socket", error)
        return False
    for api_server in mounts.api_servers_with(listen.socket):
        report.warn(
            "kms-socket",
            f"kube-apiserver (process {api_server}) has {listen.socket.name} mounted "
            "as a file: it will be unable to connect after hsm-kms restarts",
            hint=mounts.CURE,
        )
    if pid is None:
        report.ok("kms-socket", f"KMS socket {listen.socket}")
        return False
    try:
        require_kms(listen.socket)
    except HsmKmsError as error:
        report.fail("kms-socket", "KMS socket", error)
        return True
    process = f"process {pid}" if pid else "a process"
    report.ok("kms-socket", f"KMS socket {listen.socket}: {process} serves on it")
    return True


def _check_http(report: Report, config: Config, *, running: bool) -> None:
    # http.client takes longer to load than anything else here.
    from hsm_kms.http.client import read_status  # noqa: PLC0415

    http = config.http
    status = read_status(http.admin_socket) if http.admin_socket and running else None
    addresses: list[Address] = []
    if http.address is not None:
        addresses.append(TcpAddress(*http.address))
    if http.admin_socket is not None:
        addresses.append(UnixAddress(http.admin_socket))
    for address in addresses:
        _check_address(report, address, status, running=running)


def _check_address(
    report: Report, address: Address, status: dict[str, Any] | None, *, running: bool
) -> None:
    step, what = _HTTP_STEPS[address.kind], f"HTTP {address}"
    try:
        address.examine()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if taken and status is not None and _has(status, address):
            report.ok(step, f"{what}: the running server has it")
        elif taken and running and status is None:
            report.warn(step, f"{what} is taken, probably by the running server")
        else:
            hint = _http_cure(address, error)
            report.fail(step, what, HsmKmsError(f"{error.strerror}", hint=hint))
        return
    report.ok(step, what)


def _has(status: dict[str, Any], address: Address) -> bool:
    return any(
        each["address"] == str(address) and not each["error"]
        for each in status.get("http", ())
    )


def _http_cure(address: Address, error: OSError) -> str:
    if error.errno == errno.ENOENT and isinstance(address, UnixAddress):
        return f"as root, run: {install_line(address.path.parent, 0o750)}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface has this address: correct http.listen (null for none)"
    if error.errno == errno.EACCES and isinstance(address, TcpAddress):
        return "choose a port above 1023 in http.listen (null for none)"
    if address.kind == "tcp":
        return "free the port, or choose another http.listen (null for none)"
    return "choose another http.admin_socket (null for none)"
