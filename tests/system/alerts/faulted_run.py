"""Two nodes on one token in one fault after the other, scraped by a real Prometheus.

What the dashboard is checked with, and what its picture shows.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from hsm_kms import clock
from hsm_kms.ipc.values import KeyRef
from hsm_kms.log import key_id_hash
from tests.harness.administrator import Generate, change
from tests.harness.plugin import code_of
from tests.harness.prometheus import JOB, scraping
from tests.harness.wait import patient, wait_for
from tests.system.alerts.api_servers import api_servers
from tests.system.faults.load import Load
from tests.system.faults.observed import QUICK

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin
    from tests.harness.prometheus import Prometheus
    from tests.system.faults.observed import ObservedServer

TOKEN = QUICK | {"sessions_per_worker": 1, "shared": True}
PAUSE_SECONDS = 0.05
HEALTH = KeyRef("health", b"\x0e")


class FaultedRun(NamedTuple):
    """A run that is over, and the Prometheus that saw it.

    Args:
        prometheus: It has every sample.
        began: When the run began, in seconds since the Unix epoch.
        ended: When it ended.
    """

    prometheus: Prometheus
    began: float
    ended: float


class V1Traffic(threading.Thread):
    """Encrypt through v1 on one node, decrypt on each, and ask both for Status.

    Args:
        nodes: The servers.
    """

    def __init__(self, *nodes: Plugin) -> None:
        super().__init__()
        self._nodes = nodes
        self._over = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Go on until the end of the block, whatever fails."""
        while not self._over.wait(PAUSE_SECONDS):
            code_of(self._once)

    def _once(self) -> None:
        for node in self._nodes:
            node.status()
        sealed = self._nodes[0].v1_encrypt(b"d" * 32)
        for node in self._nodes:
            node.v1_decrypt(sealed)


@contextmanager
def faulted_run(make_rig, directory):
    """Run all faults; yield the run while its Prometheus still answers.

    Args:
        make_rig: Makes servers on the shim.
        directory: For the files of Prometheus.
    """
    apis = {"v2": {"enabled": True}, "v1": {"enabled": True, "wrapping": "software"}}
    http = {"listen": "127.0.0.1:0"}
    audit = {"file": str(directory / "audit.jsonl")}
    node = make_rig(token=TOKEN, apis=apis, http=http, audit=audit)
    node.start()
    node.well()
    change(node.hsm, Generate(HEALTH))
    health = {"interval": "1s", "key": HEALTH.label}
    other = late_listener(make_rig(token=TOKEN, apis=apis, http=http, health=health))
    key = key_id_hash(node.plugin.status().key_id)
    ports = {"cp-1": node.plugin.http_port(), "cp-2": other.plugin.http_port()}
    with (
        api_servers(key) as others,
        scraping(directory, {JOB: ports, "apiserver": others}) as prometheus,
        V1Traffic(node.plugin, other.plugin),
        Load(node.plugin, 3) as one,
        Load(other.plugin, 2) as two,
    ):
        began = clock.now()
        prometheus.wait_scraped(6)
        serve_admin_socket(other.plugin)
        for fault in FAULTS:
            fault(node, prometheus)
            node.shim.clear()
            node.well(120)
            other.well(120)
            one.wait_well()
            two.wait_well()
            prometheus.wait_scraped(5)
        yield FaultedRun(prometheus, began, clock.now())
    assert [] == one.wrong + two.wrong


def late_listener(rig: ObservedServer) -> ObservedServer:
    """Start a server that cannot listen on its admin socket yet."""
    plugin = rig.plugin
    socket = plugin.directory / "later" / "admin.sock"
    plugin.merge("http", {"admin_socket": str(socket)})
    plugin.write_config()
    plugin.start(listening=False)
    wait_for(lambda: plugin.events("cannot listen for HTTP"))
    plugin.wait_healthz("ok")
    return rig


def serve_admin_socket(plugin: Plugin) -> None:
    """Make the directory of its admin socket, and wait until it is there."""
    later = plugin.directory / "later"
    later.mkdir(mode=0o700)
    wait_for((later / "admin.sock").exists)
    (plugin.directory / "admin.sock").symlink_to(later / "admin.sock")


def errors(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Send a request that is refused; let others fail until the breaker opens."""
    sealed = rig.plugin.encrypt(b"d" * 32)
    code_of(lambda: rig.plugin.decrypt(sealed.ciphertext, "x" * 26))
    rig.shim.set("C_Encrypt len=77 rv=0x30")
    rig.wait_breaker_open()


def slow(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Let each call of the token take long, so that requests wait for a session."""
    rig.shim.set("C_Encrypt sleep=400")
    prometheus.wait_scraped(6)


def killed(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Kill the workers."""
    before = rig.ends("lost")
    rig.kill_served()
    wait_for(lambda: rig.ends("lost") > before)


def configured(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Write a configuration that is rejected, then one that is applied."""
    plugin = rig.plugin
    plugin.config["scope"] = 7
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration rejected"))
    prometheus.wait_scraped(4)
    plugin.config["scope"] = ""
    plugin.merge("health", {"grace": "61s"})
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration applied"))


def away(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Take the token away from both nodes until they report it."""
    rig.hsm.take_away()
    wait_for(lambda: "HsmKmsFailed" in prometheus.firing())
    prometheus.wait_scraped(6)
    rig.hsm.put_back()


def rotated(rig: ObservedServer, prometheus: Prometheus) -> None:
    """Generate a key that becomes current in ten minutes."""
    result = rig.plugin.cli("keys", "rotate")
    assert 0 == result.returncode, result.stderr
    wait_for(lambda: rig.metrics()['hsm_kms_keys{state="pending"}'], patient(120))


FAULTS = (errors, slow, killed, configured, away, rotated)
