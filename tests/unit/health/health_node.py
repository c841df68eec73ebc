"""A node as far as its health: the test decides about token and workers."""

from __future__ import annotations

from dataclasses import replace

from hsm_kms.clock import now
from hsm_kms.config import schema
from hsm_kms.errors import TokenAbsentError, TokenTimeoutError
from hsm_kms.health import healthz
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.state import Health
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.inventory import Inventory
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.keys.trial import PASSED
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from tests.unit.keys.node_rig import LABEL, Peer, Peers, StandIn, Uncounted, make_key

SLOW = TokenTimeoutError("slot 3 did not answer", hint="look at the HSM")
ABSENT = TokenAbsentError("no slot 3", hint="look at the HSM")
GRACE = 60.0


def outages(**seconds):
    """The `health` section, with these values in seconds."""
    return schema.Health().model_copy(update={"grace": GRACE} | seconds)


class HealthNode:
    """Real health, canaries and keyring; the test decides about token and workers."""

    def __init__(self, directory, clock):
        self.clock = clock
        self.keyring = NodeKeyring(
            KeySettings(label=LABEL, shared=True), StateDir(directory).open()
        )
        self.workers = Peers(set())
        self.standby = StandIn()
        self.canaries = Canaries(
            self.keyring, Alarm(), Uncounted(), "", call_timeout=2.0
        )
        self.health = Health(
            self.keyring,
            self.canaries,
            self.workers,
            self.standby,
            outages(grace=GRACE),
        )

    async def well(self):
        """A worker serves, and its canary passes."""
        inventory, peer = Inventory(), Peer(set())
        listing = KeyListing(keys=(make_key(0, now() - 9000),))
        inventory.note(peer, listing, now())
        self.serves(peer)
        self.canaries.passed(peer)
        await self.keyring.adopt(inventory, (), lambda _: PASSED, "serial")
        self.health.evaluate()
        return self

    def serves(self, *peers):
        """These workers serve, and no other."""
        for peer in self.workers.ready:
            peer.lost.set()
        self.workers.ready = list(peers)
        self.workers.last_error = None

    @property
    def local_kek(self):
        """A local KEK can wrap."""
        return self.standby.encrypts_without_token

    @local_kek.setter
    def local_kek(self, there):
        self.standby.encrypts_without_token = there

    def away(self, error=SLOW):
        """A canary fails."""
        self.canaries.failed(error)
        self.health.evaluate()

    def gone(self, error=ABSENT):
        """The last worker is gone, and no other can start."""
        self.serves()
        self.workers.last_error = error
        self.workers.failed_at = self.clock[0]
        self.health.evaluate()

    def later(self, seconds):
        """Time passes, and the monitor judges the state again."""
        self.clock[0] += seconds
        self.health.evaluate()

    def fault(self, error):
        """The keyring has a fault."""
        self.keyring.ring = replace(self.keyring.ring, fault=error)
        self.health.evaluate()

    def stop_after(self, seconds):
        """Set `stop_writes_after`."""
        self.health.adjust(outages(grace=GRACE, stop_writes_after=seconds))

    @property
    def seen(self):
        """State, healthz or "UNAVAILABLE", and whether /readyz is 200."""
        state = self.health.look()
        assert state.ready == (state.answers and state.healthz == "ok")
        assert bool(state.key_id) == (state.state != "starting")
        return state.state, state.healthz if state.answers else "UNAVAILABLE"


def sentence(error):
    """Return the message of healthz for an error."""
    return healthz.health(error)


def in_software(error):
    """Return the message of healthz for an error while Encrypt works in software."""
    return f"{healthz.health(error)}; writes continue with a local KEK"
