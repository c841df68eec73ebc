"""Health: state, healthz and Status for each situation, on a clock the test moves."""

from __future__ import annotations

import asyncio
import http.client
import math
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from hsm_kms.clock import now
from hsm_kms.config import schema
from hsm_kms.errors import (
    KeyLostError,
    NonceBudgetError,
    TokenAbsentError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.health import healthz
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.state import DOWN_SECONDS, Health
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.inventory import Inventory
from hsm_kms.keys.keyring import KeySettings
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from tests.harness.wait import wait_for
from tests.unit.keys.node_rig import (
    LABEL,
    Engine,
    Peer,
    Peers,
    StandIn,
    Uncounted,
    make_key,
)

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
        self.canaries = Canaries(self.keyring, Alarm(), Uncounted(), "")
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
        listing = KeyListing(keys=(make_key(0, now() - 9000),), unidentified=None)
        inventory.note(peer, listing, now())
        self.serves(peer)
        self.canaries.passed(peer)
        self.keyring.adopt(inventory, None, lambda _: True, "serial")
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
    return f"{healthz.health(error)}; meanwhile Encrypt works in software"


@pytest.fixture
async def clock(monkeypatch):
    """The loop's clock, which stands until the test moves it."""
    loop = asyncio.get_running_loop()
    now_ = [float(math.ceil(loop.time()))]  # whole seconds add up exactly
    monkeypatch.setattr(loop, "time", lambda: now_[0])
    return now_


@pytest.fixture
async def fresh(tmp_path, clock):
    """A node that has not reached its token."""
    return HealthNode(tmp_path / "state", clock)


@pytest.fixture
async def node(fresh):
    """A node whose token is available."""
    return await fresh.well()


async def test_well(node):
    """While the token works the state is ok in every wrapping mode."""
    for node.local_kek in (False, True):
        node.health.evaluate()
        assert ("ok", "ok") == node.seen
        assert node.health.look().ready


# The token is away


async def test_token_away(node):
    """25 s after the first failed canary healthz gives the cause."""
    node.away()
    node.later(DOWN_SECONDS - 0.125)
    assert ("ok", "ok") == node.seen

    node.later(0.125)
    assert ("failed", sentence(SLOW)) == node.seen
    assert node.health.look().key_id == node.keyring.key_id


async def test_no_worker_starts(node):
    """If a fresh worker cannot start, healthz gives the cause at once."""
    node.gone()

    assert ("failed", sentence(ABSENT)) == node.seen


async def test_degraded(node):
    """If Encrypt works without the token, healthz stays ok for `grace` seconds."""
    node.local_kek = True
    node.away()
    node.later(DOWN_SECONDS)
    assert ("degraded", "ok") == node.seen
    assert node.health.look().ready
    assert "slot 3 did not answer; look at the HSM" in node.health.detail

    node.later(GRACE - DOWN_SECONDS - 0.125)
    assert ("degraded", "ok") == node.seen
    node.later(0.125)
    assert ("degraded", in_software(SLOW)) == node.seen
    assert not node.health.look().ready

    await node.well()
    assert ("ok", "ok") == node.seen


async def test_degraded_at_once(node):
    """If no worker starts, the grace holds too, and the latest cause is given."""
    node.local_kek = True
    node.gone()
    assert ("degraded", "ok") == node.seen

    node.gone(SLOW)
    node.later(GRACE)
    assert ("degraded", in_software(SLOW)) == node.seen


async def test_no_grace(node):
    """With a grace of 0 s healthz gives the cause at once."""
    node.local_kek = True
    node.health.adjust(outages(grace=0.0))
    node.gone()

    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_settings_change(node):
    """A changed grace applies to the outage under way."""
    node.local_kek = True
    node.gone()
    node.later(GRACE)
    node.health.adjust(outages(grace=2 * GRACE))
    assert ("degraded", "ok") == node.seen

    node.later(GRACE)
    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_call_fails_in_the_grace(node):
    """A failed request ends the grace at once."""
    node.local_kek = True
    node.gone()
    node.health.call_failed()

    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_call_fails_before_the_outage_is_known(node):
    """A request that failed before the first failed canary ends the grace, too."""
    node.local_kek = True
    node.health.call_failed()
    assert ("ok", "ok") == node.seen
    node.later(1)
    node.away()
    node.health.call_failed()
    assert ("ok", "ok") == node.seen

    node.later(DOWN_SECONDS)
    assert ("degraded", in_software(SLOW)) == node.seen


async def test_call_failed_before_a_good_canary(node):
    """A failed request does not count once a canary has passed."""
    node.local_kek = True
    node.health.call_failed()
    await node.well()
    node.gone()
    assert ("degraded", "ok") == node.seen

    node.health.call_failed()
    await node.well()
    assert ("ok", "ok") == node.seen
    node.gone()
    assert ("degraded", "ok") == node.seen


async def test_call_fails_while_all_is_well(node):
    """A failed request alone does not change the state."""
    node.health.call_failed()
    node.later(2 * GRACE)

    assert ("ok", "ok") == node.seen


async def test_max_offline(node):
    """Once the local KEK has expired the state is failed."""
    node.local_kek = True
    node.gone()
    node.later(GRACE)
    node.local_kek = False
    node.later(1)
    assert ("failed", sentence(ABSENT)) == node.seen

    node.local_kek = True  # a reload allowed it longer
    node.later(1)
    assert ("degraded", in_software(ABSENT)) == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_worker_comes_and_goes(node, local_kek):
    """An outage ends with a passed canary, not with a started worker."""
    node.local_kek = local_kek
    node.gone()
    down = node.seen
    node.serves()
    node.later(1)
    assert down[0] == node.seen[0]

    await node.well()
    assert ("ok", "ok") == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_new_doubt_after_an_outage(node, local_kek):
    """Each outage has its own 25 s and its own grace."""
    node.local_kek = local_kek
    node.gone()
    node.later(10 * GRACE)
    await node.well()
    node.away()
    node.later(DOWN_SECONDS - 1)
    assert ("ok", "ok") == node.seen

    node.later(1)
    wanted = ("degraded", "ok") if local_kek else ("failed", sentence(SLOW))
    assert wanted == node.seen


# The key, the start


@pytest.mark.parametrize("local_kek", [False, True])
async def test_key_lost(node, local_kek):
    """A local KEK does not replace a lost key, with or without the token."""
    node.local_kek = local_kek
    lost = KeyLostError("gone")
    node.fault(lost)
    assert ("failed", sentence(lost)) == node.seen

    node.gone()
    assert ("failed", sentence(ABSENT)) == node.seen


async def test_key_has_wrapped_too_often(node):
    """A local KEK does not replace a key that has used up its nonces."""
    node.local_kek = True
    spent = NonceBudgetError("2^29")
    node.standby.spent = spent
    node.health.evaluate()
    assert ("failed", sentence(spent)) == node.seen

    node.gone()
    assert ("failed", sentence(ABSENT)) == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_not_reached(fresh, local_kek):
    """A node that remembers no key answers no Status until it has read the keys."""
    fresh.local_kek = local_kek
    fresh.later(1)
    assert ("starting", "UNAVAILABLE") == fresh.seen
    fresh.gone()
    assert ("starting", "UNAVAILABLE") == fresh.seen
    assert sentence(ABSENT) == fresh.health.look().healthz

    await fresh.well()
    assert ("ok", "ok") == fresh.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_not_reached_since_the_start(node, tmp_path, clock, local_kek):
    """A node that remembers its last key answers with its key_id and the cause."""
    again = HealthNode(tmp_path / "state", clock)
    again.local_kek = local_kek
    unreached = sentence(WorkerLostError())
    assert ("failed", unreached) == again.seen
    assert node.keyring.key_id == again.health.look().key_id
    again.later(1)
    assert ("failed", unreached) == again.seen

    again.gone()
    assert ("failed", sentence(ABSENT)) == again.seen


# stop_writes_after


@pytest.mark.parametrize("local_kek", [False, True])
async def test_stop_writes(node, local_kek):
    """Status stops answering after `stop_writes_after`, until the state is ok again."""
    node.local_kek = local_kek
    node.stop_after(600.0)
    node.away()
    node.later(DOWN_SECONDS)
    node.later(599)
    wanted = ("degraded", in_software) if local_kek else ("failed", sentence)
    assert (wanted[0], wanted[1](SLOW)) == node.seen

    node.later(1)
    assert (wanted[0], "UNAVAILABLE") == node.seen
    assert node.keyring.key_id == node.health.look().key_id
    assert not node.health.look().ready

    await node.well()
    assert ("ok", "ok") == node.seen


async def test_stop_writes_for_a_lost_key(node):
    """A lost key stops Status from answering, too."""
    node.stop_after(600.0)
    node.fault(KeyLostError("gone"))
    node.later(600)

    assert ("failed", "UNAVAILABLE") == node.seen


async def test_stop_writes_counts_over_causes(node):
    """Two causes in a row count as one time without being ok."""
    node.stop_after(600.0)
    node.gone()
    node.later(300)
    await node.well()
    node.gone()
    node.later(300)
    assert ("failed", sentence(ABSENT)) == node.seen
    node.serves(Peer(set()))
    node.fault(KeyLostError("gone"))
    node.later(300)

    assert ("failed", "UNAVAILABLE") == node.seen


async def test_stop_writes_from_the_start(node, tmp_path, clock):
    """If the state never was ok, the time counts from the start."""
    again = HealthNode(tmp_path / "state", clock)
    again.stop_after(600.0)
    again.later(0)
    again.later(599)
    assert "UNAVAILABLE" not in again.seen
    again.later(1)

    assert ("failed", "UNAVAILABLE") == again.seen


async def test_stop_writes_within_the_grace(node):
    """When Status stops answering, the grace is over: healthz gives the cause."""
    node.local_kek = True
    node.stop_after(30.0)
    node.gone()
    node.later(30)

    assert ("degraded", "UNAVAILABLE") == node.seen
    assert in_software(ABSENT) == node.health.look().healthz


async def test_writes_go_on_unless_stopped(node):
    """Without `stop_writes_after` Status answers permanently."""
    node.gone()
    node.later(365 * 86400)

    assert ("failed", sentence(ABSENT)) == node.seen


# Around it


async def test_when_it_was_well(fresh):
    """The token counts as offline since the last canary passed, once one has failed."""
    assert fresh.canaries.offline_for() is None
    await fresh.well()
    fresh.later(20)
    assert fresh.canaries.offline_for() == 0

    fresh.away()
    assert fresh.canaries.offline_for() == pytest.approx(20)
    assert ("ok", "ok") == fresh.seen
    fresh.later(1000)
    assert fresh.canaries.offline_for() == pytest.approx(1020)
    await fresh.well()
    assert fresh.canaries.offline_for() == 0


async def test_log(node):
    """Each change is logged once, with the detail that clients do not see."""
    node.local_kek = True
    node.stop_after(3600.0)
    with capture_logs() as logs:
        node.gone()
        for _ in range(3600):
            node.later(1)
        await node.well()
        await node.well()
    told = [log for log in logs if log["event"] == "health"]

    assert [
        ("degraded", "ok", True),
        ("degraded", in_software(ABSENT), True),
        ("degraded", in_software(ABSENT), False),
        ("ok", "ok", True),
    ] == [(log["state"], log["healthz"], log["answers"]) for log in told]
    assert (
        "no slot 3; look at the HSM; meanwhile Encrypt works in software"
        == (told[0]["detail"])
    )


async def test_time_passes_without_a_worker(tmp_path, clock):
    """Grace and Status end in time while no worker serves."""
    settings = KeySettings(label=LABEL, shared=True)
    token = {make_key(0, now() - 9000)}
    section = outages(stop_writes_after=600.0)
    engine = Engine(settings, tmp_path / "state", now, token, section)
    engine.standby.encrypts_without_token = True
    await engine.come()
    running = asyncio.create_task(engine.monitor.run())
    said = []
    await engine.gone(engine.peers.ready[0])
    for _ in range(650):
        clock[0] += 1
        for _ in range(5):
            await asyncio.sleep(0)
        state = engine.state()
        one = (state.state, state.healthz == "ok", state.answers)
        said += [] if one in said else [one]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert [
        ("ok", True, True),
        ("degraded", True, True),
        ("degraded", False, True),
        ("degraded", False, False),
    ] == said


# Served


def test_served_without_answers(make_plugin, hsm):
    """Status is UNAVAILABLE, /readyz 503, `status` gives the cause; a key ends it.

    The server remembers its key and does not reach the token that has it.
    """
    plugin = make_plugin(hsm, health={"stop_writes_after": "2s"}).start()
    plugin.wait_healthz("ok")
    plugin.stop()
    plugin.config["token"] |= {"token_label": "another"}
    plugin.write_config()
    plugin.start()
    plugin.wait_healthz("UNAVAILABLE")
    wait_for(lambda: "no token" in plugin.events("health")[-1]["detail"])
    shown = plugin.cli("status")

    assert (1, "") == (shown.returncode, shown.stdout)
    assert "\nhint: as health.stop_writes_after has it, since " in shown.stderr
    assert "no token" in shown.stderr
    assert 503 == readyz(plugin)

    plugin.config["token"] |= {"token_label": "test"}
    plugin.write_config()
    plugin.wait_healthz("ok")
    assert 200 == readyz(plugin)


def readyz(plugin):
    """HTTP status code."""
    port = plugin.events("probes and metrics")[-1]["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/readyz")
    code = connection.getresponse().status
    connection.close()
    return code
