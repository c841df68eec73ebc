"""A server on the shim and on a disk that can hang, and what it has encrypted."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from pathlib import Path

from tests.harness.disk.driver import Disk
from tests.harness.plugin import Plugin, code_of
from tests.harness.shim.driver import Shim
from tests.system.faults.load import Kept
from tests.system.faults.observed import ObservedServer

WORKERS = 2


class Subject:
    """One server, not started yet.

    Args:
        keyed: A token with a key, to be copied.
        pin_file: Its PIN.
        setenv: Sets a variable of the environment.

    Attributes:
        made: What was encrypted.
    """

    def __init__(self, keyed, pin_file, setenv):
        self.directory = Path(tempfile.mkdtemp(prefix="hsm-kms-", dir="/tmp"))
        self.hsm = keyed.copy(self.directory / "hsm")
        shim = Shim(self.directory)
        plugin = Plugin(
            self.directory,
            self.hsm,
            pin_file,
            token={
                "module": str(shim.module),
                "env": {**self.hsm.env, **shim.env},
                "workers": WORKERS,
                "sessions_per_worker": 1,
                "call_timeout": "10s",
                "start_timeout": "20s",
            },
            health={"interval": "500ms"},
            log={"level": "info"},
        )
        self.rig = ObservedServer(plugin=plugin, hsm=self.hsm, shim=shim)
        self.disk = Disk(self.directory.resolve() / "state")
        for name, value in self.disk.env.items():
            setenv(name, value)
        self.made = []

    def agree(self):
        """Return True if Status is ok and a round trip works, or neither."""
        return (self.rig.plugin.healthz() == "ok") is (self.round_trip() == "OK")

    def round_trip(self):
        """Return the code of an Encrypt, and of the Decrypt of what it gave."""
        plaintext = secrets.token_bytes(32)
        sealed = []
        code = code_of(lambda: sealed.append(self.rig.plugin.encrypt(plaintext)))
        if not sealed:
            return code
        one = Kept(plaintext, sealed[0].ciphertext, sealed[0].key_id)
        self.made.append(one)
        return code_of(lambda: self.open(one))

    def open(self, one):
        """Decrypt, and compare."""
        opened = self.rig.plugin.decrypt(one.ciphertext, one.key_id)
        assert one.plaintext == opened

    def write(self, text=None):
        """Replace the configuration file, and tell the server."""
        plugin = self.rig.plugin
        plugin.write_config(text)
        os.kill(plugin.process.pid, signal.SIGHUP)

    def in_force(self):
        """Return True if the configuration file is in force."""
        return bool(self.rig.metrics()["hsm_kms_config_in_force"])

    def has_all_sessions(self):
        """Return True if the configuration is applied, and every worker serves."""
        wanted = WORKERS * self.rig.plugin.config["token"]["sessions_per_worker"]
        return self.in_force() and self.rig.admin()["sessions"]["held"] == wanted
