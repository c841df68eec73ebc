"""The audit of a server whose disk is full, with both settings of `on_error`."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import code_of
from tests.harness.processes import in_namespace, namespace_prefix
from tests.harness.wait import wait_for
from tests.system.conformance.inside import metrics
from tests.unit.audit.audit_rig import audit_path, lines, of


def is_json(line):
    """Return True if a line was not cut."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class SmallDisk:
    """A file system of 64 KiB in the mount namespace of a server.

    Args:
        plugin: The server.
        directory: Where it is mounted.
        prefix: The command that makes a mount namespace.
    """

    def __init__(self, plugin, directory, prefix):
        self.directory = directory
        self._commands = plugin.directory / "commands"
        os.mkfifo(self._commands)
        script = (
            f"mount -t tmpfs -o size=64k,mode=0700 none {directory} && "
            f"{{ sh {self._commands} & }}"
        )
        serve = [*HSM_KMS, "serve", "--config", str(plugin.config_file)]
        with plugin.log_file.open("ab") as log:
            plugin.process = subprocess.Popen(
                in_namespace(prefix, script, *serve), stdout=log, stderr=log
            )
        self._shell = self._commands.open("w")
        self._done = plugin.directory / "done"

    def run(self, command):
        """Run a command of the shell in the namespace, and wait for its end."""
        self._shell.write(f"{command}; touch {self._done}\n")
        self._shell.flush()
        wait_for(self._done.exists)
        self._done.unlink()

    def fill(self):
        """Leave no free block."""
        self.run(f"cat /dev/zero > {self.directory}/fill 2> /dev/null")

    def free(self):
        """Have free blocks again."""
        self.run(f"rm {self.directory}/fill")

    def copy(self, file, to):
        """Copy a file out of the namespace, without lines that the full disk cut."""
        self.run(f"cat {file} > {to}")
        whole = filter(is_json, to.read_text().splitlines())
        to.write_text("".join(f"{line}\n" for line in whole))

    def close(self):
        """End the shell."""
        self._shell.close()


@pytest.fixture
def path(directory):
    """The audit file, in a directory of its own."""
    return audit_path(directory)


@pytest.fixture
def on_small_disk(make_plugin, hsm, path):
    """Start a server whose audit file is on a small disk."""
    prefix = namespace_prefix() or pytest.skip("no mount namespace can be made here")
    made = []

    def start(on_error):
        audit = {"file": str(path), "on_error": on_error}
        plugin = make_plugin(hsm, audit=audit)
        disk = SmallDisk(plugin, path.parent, prefix)
        made.append(disk)
        plugin.wait_healthz("ok")
        return plugin, disk

    yield start
    for disk in made:
        disk.close()


def until_lost(plugin, send):
    """Send requests until a record is lost: the last block of the file takes some."""
    wait_for(lambda: [code_of(send), plugin.events("audit records are being lost")][1])


def test_full_disk_and_continue(on_small_disk, path, directory):
    """On a full disk requests are answered; what is lost is counted and shown."""
    plugin, disk = on_small_disk("continue")
    sealed = plugin.encrypt(b"d" * 32)
    disk.fill()
    until_lost(plugin, lambda: plugin.decrypt(sealed.ciphertext, sealed.key_id))

    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    assert "ok" == plugin.healthz()
    shown = plugin.cli("status")
    assert 0 == shown.returncode
    assert (
        f"audit: records are lost: cannot write the audit file {path}" in shown.stdout
    )
    assert "No space left on device; free space on its file system" in shown.stdout
    seen = metrics(plugin)
    assert 1 == seen["hsm_kms_audit_failing"]
    disk.free()
    wait_for(lambda: metrics(plugin)["hsm_kms_audit_failing"] == 0)
    plugin.decrypt(sealed.ciphertext, sealed.key_id, uid="last")
    wait_for(lambda: metrics(plugin)["hsm_kms_audit_records_waiting"] == 0)
    lost = metrics(plugin)['hsm_kms_audit_records_total{result="lost"}']
    copy = directory / "copy"
    disk.copy(path, copy)
    assert lost >= 1
    assert lost == sum(each["records"] for each in of(copy, "lost"))
    sequence = [each["seq"] for each in lines(copy)]
    assert lost == sequence[-1] - len(sequence)
    assert 1 == len(plugin.events("audit records are being lost"))
    assert 1 == len(plugin.events("audit records are written again"))


def test_full_disk_and_refuse(on_small_disk, path, directory):
    """On a full disk requests are refused; Status, /readyz and `status` say why."""
    plugin, disk = on_small_disk("refuse")
    sealed = plugin.encrypt(b"d" * 32)
    disk.fill()

    def decrypt():
        return plugin.decrypt(sealed.ciphertext, sealed.key_id)

    until_lost(plugin, decrypt)

    assert "UNAVAILABLE" == code_of(decrypt)
    assert "UNAVAILABLE" == code_of(lambda: plugin.encrypt(b"d" * 32))
    plugin.wait_healthz("audit records cannot be written, and audit.on_error is refuse")
    assert 503 == plugin.page("/readyz")[0]
    assert sealed.key_id == plugin.status().key_id
    shown = plugin.cli("status")
    assert 1 == shown.returncode
    assert "audit: requests are refused: cannot write the audit file" in shown.stdout
    disk.free()
    plugin.wait_healthz("ok")  # without a request
    assert b"d" * 32 == decrypt()
    copy = directory / "copy"
    disk.copy(path, copy)
    assert "OK" == lines(copy)[-1]["code"]
