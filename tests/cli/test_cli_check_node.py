"""Test that `check` sees all that `serve` does at its start, and changes nothing."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess

import pytest

from tests.cli.conftest import SERVICE
from tests.cli.etcd_cli import OBJECTS
from tests.cli.every_command import USE_THE_TOKEN
from tests.harness.command_line import HSM_KMS, run
from tests.harness.etcd_samples import written
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient

ME = f"-o {os.geteuid()} -g {os.getegid()}"


@pytest.fixture
def taken():
    """A TCP port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield f"127.0.0.1:{other.getsockname()[1]}"


def missing_run(at, _):
    return {"listen": {"socket": f"{at}/run/kms.sock"}}


def open_run(at, _):
    (at / "open").mkdir()
    (at / "open").chmod(0o777)
    return {"listen": {"socket": f"{at}/open/kms.sock"}}


def socket_is_file(at, _):
    (at / "file").touch()
    return {"listen": {"socket": f"{at}/file"}}


def lock_is_directory(at, _):
    (at / "s.lock").mkdir()
    return {"listen": {"socket": f"{at}/s"}}


def admin_is_file(at, _):
    (at / "file").touch()
    return {"http": {"admin_socket": f"{at}/file"}}


# what is wrong: how that is arranged · the failed check · its hint
FAULTS = {
    "no directory for the socket": (
        missing_run,
        "KMS socket: cannot use the socket's directory AT/run: No such file",
        f"as root, run: install -d -m 0750 {ME} AT/run",
    ),
    "a directory in which all can write": (
        open_run,
        "KMS socket: the socket's directory AT/open is writable by others",
        "chmod go-w AT/open",
    ),
    "an unknown group": (
        lambda _at, _: {"listen": {"group": "no-such-group"}},
        "KMS socket: there is no group 'no-such-group'",
        "create the group, or correct listen.group",
    ),
    "a file in the socket's place": (
        socket_is_file,
        "KMS socket: AT/file exists and is not a socket",
        "remove it, or choose another listen.socket",
    ),
    "a directory in the lock's place": (
        lock_is_directory,
        "KMS socket: the lock AT/s.lock is not a regular file",
        "",
    ),
    "a port that another program has": (
        lambda _at, taken: {"http": {"listen": taken}},
        "HTTP TAKEN: Address already in use",
        "free the port, or choose another http.listen",
    ),
    "an address of another machine": (
        lambda _at, _: {"http": {"listen": "203.0.113.1:9462"}},
        "HTTP 203.0.113.1:9462: Cannot assign requested address",
        "no interface has this address: correct http.listen",
    ),
    "no directory for the admin socket": (
        lambda at, _: {"http": {"admin_socket": f"{at}/run/admin.sock"}},
        "HTTP AT/run/admin.sock: No such file or directory",
        f"as root, run: install -d -m 0750 {ME} AT/run",
    ),
    "a file in the admin socket's place": (
        admin_is_file,
        "HTTP AT/file: the path exists and is not a socket",
        "choose another http.admin_socket",
    ),
    "no state directory": (
        lambda at, _: {"state_dir": f"{at}/none"},
        "state directory: the state directory AT/none does not exist",
        f"as root, run: install -d -m 0700 {ME} AT/none",
    ),
    "no configuration of the module": (
        lambda at, _: {"token": {"env": {"SOFTHSM2_CONF": f"{at}/no.conf"}}},
        "module: token.env.SOFTHSM2_CONF names AT/no.conf: No such file or directory",
        "correct token.env, or create the file",
    ),
    "a known module in an unusual place": (
        lambda at, _: {"token": {"module": f"{at}/libykcs11.so"}},
        "module: AT/libykcs11.so: No such file or directory",
        "install the package ykcs11, or correct token.module",
    ),
    "a module that is elsewhere": (
        lambda at, _: {"token": {"module": f"{at}/libsofthsm2.so"}},
        "module: AT/libsofthsm2.so: No such file or directory",
        "set token.module to /usr/",
    ),
    "an unknown module": (
        lambda at, _: {"token": {"module": f"{at}/vendor.so"}},
        "module: AT/vendor.so: No such file or directory",
        "correct token.module: ",
    ),
    "the directory of the module": (
        lambda at, _: {"token": {"module": str(at)}},
        "module: AT: Is a directory",
        "correct token.module: it must name a file",
    ),
    "a module below a file": (
        lambda at, _: {"token": {"module": f"{at}/config.yaml/libykcs11.so"}},
        "module: AT/config.yaml/libykcs11.so: Not a directory",
        "install the package ykcs11, or correct token.module",
    ),
}


def files(directory):
    return {path: path.lstat().st_mtime_ns for path in directory.rglob("*")}


def test_faults_of_the_node(make_plugin, hsm, directory, taken):
    """Each fault that would keep `serve` from its work is found; nothing is made."""
    for name, (arrange, cause, cure) in FAULTS.items():
        plugin = make_plugin(hsm)
        at = plugin.directory
        for section, changes in arrange(at, taken).items():
            plugin.merge(section, changes)
        plugin.write_config()
        before = files(directory)
        shown = run("check", "--offline", "--config", plugin.config_file)
        found, hint = (
            each.replace("AT", str(at)).replace("TAKEN", taken)
            for each in (cause, cure)
        )

        assert (1, "") == (shown.returncode, shown.stderr), name
        failed = shown.stdout[shown.stdout.index("✗") :].splitlines()
        assert failed[0].startswith(f"✗ {found}"), name
        if hint:
            assert failed[1].startswith(f"  hint: {hint}"), name
        assert failed[-1].startswith("1 of "), name
        assert before == files(directory), name


def test_each_fault_is_in_the_troubleshooting():
    """docs/troubleshooting.md has the line of each fault."""
    names = {"AT": "/path", "TAKEN": "127.0.0.1:9462"}
    for name, (_, cause, _) in FAULTS.items():
        assert is_explained(f"✗ {cause}", names), name


def test_creates_nothing(make_plugin, hsm):
    """No command but `serve` creates a state directory; each says how to make it."""
    plugin = make_plugin(hsm, token={"shared": True})
    plugin.write_config()
    plugin.state_dir.rmdir()
    dump = written(plugin.directory / "dump.json", OBJECTS)
    before = files(plugin.directory)
    commands = USE_THE_TOKEN | {("etcd", "verify"): ("--from-json", dump)}
    del commands["token", "list"]  # it needs no login
    for command, arguments in commands.items():
        ended = run(*command, *arguments, "--config", plugin.config_file)
        assert 1 == ended.returncode, command
        said = ended.stdout + ended.stderr
        line = f"install -d -m 0700 {ME} {plugin.state_dir}"
        assert f"hint: as root, run: {line}\n" in said, command
    assert before == files(plugin.directory)


def test_port_of_the_running_server(make_plugin, hsm, held_port):
    """A port and a socket that the running server itself has are in order."""
    plugin = make_plugin(hsm, http={"listen": f"127.0.0.1:{held_port}"}).start()
    plugin.wait_healthz("ok")
    shown = plugin.cli("check", "--offline").stdout

    assert f"✓ HTTP 127.0.0.1:{held_port}: the running server has it\n" in shown
    pid = plugin.process.pid
    assert f"✓ KMS socket {plugin.socket}: process {pid} serves on it\n" in shown


@pytest.mark.usefixtures("open_checkout")
def test_node_of_another_user(of_another_user):
    """Root is told as whom to run a command, and the printed line works."""
    plugin = of_another_user
    config = ("--config", str(plugin.config_file))
    line = (
        f"setpriv --reuid={SERVICE} --regid={SERVICE} --clear-groups hsm-kms "
        f"check --offline {shlex.join(config)}"
    )
    for command in ("check --offline", "keys list", "keys generate", "token retry-pin"):
        ended = run(*command.split(), *config)
        said = ended.stdout + ended.stderr
        assert 1 == ended.returncode
        assert f"hsm-kms serves as user {SERVICE} here, which owns" in said
        assert f"hint: as root, run: {line.replace('check --offline', command)}" in said
        assert "chown" not in said
    words = shlex.split(line)
    at = words.index("hsm-kms")
    shown = subprocess.run(
        [*words[:at], *HSM_KMS, *words[at + 1 :]],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert f"✓ state directory {plugin.state_dir}\n" in shown.stdout, shown
    assert f"✓ PIN file {plugin.config['token']['pin_file']}\n" in shown.stdout
