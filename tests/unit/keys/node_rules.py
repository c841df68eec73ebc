"""Rules of a node for hypothesis: what happens around it, and what must hold."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from structlog.testing import capture_logs

from hsm_kms.config import schema
from hsm_kms.keys.token_key import KeySettings
from tests.unit.keys.node_rig import LABEL, Engine, make_key
from tests.unit.token.pool_rig import Loop

YEAR = 365 * 24 * 3600
BEGIN = 1_800_000_000.0  # in seconds since the Unix epoch, the same in every replay
# Time passes here without a look, which says nothing about the keys.
HEALTH = schema.Health().model_copy(update={"interval": 100.0 * YEAR})
which = st.integers(min_value=0, max_value=99)


class NodeRules(RuleBasedStateMachine):
    """A node on a token: what happens to keys, workers and clocks."""

    @initialize(shared=st.sampled_from([True, True, True, False]))
    def start(self, shared):
        """A server on a token with one key."""
        self.loop = Loop()
        self.directory = Path(tempfile.mkdtemp(prefix="hsm-kms-"))
        self.wall = BEGIN
        self.token = set()
        self.made = []
        self.damaged = set()
        self.written = []  # keys that DEKs were wrapped under
        self.settings = KeySettings(label=LABEL, shared=shared)
        self.announced = None  # since the start of the process
        self.said = []  # key_ids of Status, each once
        self.coming = None  # the engine of a reload
        self.new_key(-1000)
        self.begin()

    def run(self, work):
        with capture_logs() as logs:
            self.loop.run_until_complete(work)
        assert [] == [one for one in logs if one["log_level"] == "error"]

    def engine_of(self, settings):
        return Engine(
            settings,
            self.directory,
            lambda: self.wall,
            self.token,
            HEALTH,
            damaged=self.damaged,
        )

    def begin(self):
        """Start the process."""
        self.engine = self.announcer = self.engine_of(self.settings).take_effect()
        self.announced = None
        self.both_come(self.engine)

    def both_come(self, engine):
        for _ in range(2):
            self.run(engine.come())
        self.judge()

    def engines(self):
        """Each engine once, in an order that a replay repeats."""
        all_of_them = [self.engine, self.announcer, self.coming]
        return list(dict.fromkeys(filter(None, all_of_them)))

    def peers(self):
        return [(each, peer) for each in self.engines() for peer in each.peers.ready]

    def new_key(self, ahead, **kind):
        key = make_key(len(self.made), self.wall + ahead, **kind)
        self.made.append(key)
        self.token.add(key)
        return key

    # The token and its workers

    @rule(
        ahead=st.sampled_from([-900, -300, 0, 60, 600]),
        kind=st.sampled_from(["good", "good", "good", "planted", "offending"]),
        seen=st.sampled_from(["fresh", "some", "all", "all"]),
    )
    def key_appears(self, ahead, kind, seen):
        """A key is made; some workers, or only fresh ones, see it."""
        if len(self.made) >= 1000:
            return
        key = self.new_key(
            ahead, born_here=kind != "planted", offending=kind == "offending"
        )
        peers = [peer for _, peer in self.peers()]
        for peer in {"fresh": [], "some": peers[:1], "all": peers}[seen]:
            peer.sees.add(key)

    @rule(number=which)
    def tie(self, number):
        """A key of another's activation time is made."""
        other = self.made[number % len(self.made)]
        key = self.new_key(other.activation - self.wall)
        for _, peer in self.peers():
            peer.sees.add(key)

    @rule(number=which)
    def key_goes(self, number):
        """A key is deleted."""
        key = self.made[number % len(self.made)]
        self.token.discard(key)
        for _, peer in self.peers():
            peer.sees.discard(key)

    @rule(
        number=which,
        how=st.sampled_from(["generate", "import"]),
        seen=st.sampled_from(["fresh", "all", "all"]),
    )
    def names_are_taken(self, number, how, seen):
        """A key is relabelled or destroyed, and another one gets its names."""
        old = self.made[number % len(self.made)]
        if old not in self.token or len(self.made) >= 1000:
            return
        new = self.new_key(old.activation - self.wall, born_here=how == "generate")
        self.token.discard(new)
        self.made[-1] = new = replace(new, ref=old.ref)
        self.exchange(old, new, seen)

    @rule(number=which, seen=st.sampled_from(["fresh", "all", "all"]))
    def names_are_given_back(self, number, seen):
        """A key gets the names again that another one had taken."""
        old = self.made[number % len(self.made)]
        for taker in [each for each in self.token if each.ref == old.ref]:
            self.exchange(taker, old, seen)

    def exchange(self, old, new, seen):
        """Put one key in the place of another."""
        self.token.discard(old)
        self.token.add(new)
        for _, peer in self.peers() if seen == "all" else ():
            if old in peer.sees:
                peer.sees.discard(old)
                peer.sees.add(new)

    @rule(number=which)
    def damage(self, number):
        """A key cannot be identified any more, or can again."""
        self.damaged ^= {self.made[number % len(self.made)].fingerprint}

    @rule(number=which)
    def key_is_back(self, number):
        """A deleted key is restored, for workers that start from now on."""
        key = self.made[number % len(self.made)]
        if all(each.ref != key.ref for each in self.token):
            self.token.add(key)

    @rule(number=which, who=which)
    def listing_misses(self, number, who):
        """One listing leaves a key out."""
        if peers := self.peers():
            key = self.made[number % len(self.made)]
            peers[who % len(peers)][1].blind.add(key)

    @rule(number=which, who=which)
    def key_fails(self, number, who):
        """A worker cannot wrap under a key any more, or can again."""
        if peers := self.peers():
            key = self.made[number % len(self.made)]
            peers[who % len(peers)][1].fails ^= {key.fingerprint}

    @rule(who=which)
    def worker_dies(self, who):
        """A worker is gone."""
        if peers := self.peers():
            engine, peer = peers[who % len(peers)]
            self.run(engine.gone(peer))
            self.judge()

    @rule(number=which, fails=st.booleans())
    def worker_comes(self, number, fails):
        """A fresh worker is started where one is missing."""
        failing = {self.made[number % len(self.made)].fingerprint} if fails else set()
        for engine in self.engines():
            self.run(engine.come(failing))
        self.judge()

    # Time

    @rule(seconds=st.sampled_from([0.5, 5, 31, 91, 300, 601]))
    def time_passes(self, seconds):
        """Both clocks go on."""
        self.loop.now += seconds
        self.wall += seconds

    @rule(seconds=st.sampled_from([-YEAR, -700, -60, -1, 1, 60, 700, YEAR]))
    def clock_is_set(self, seconds):
        """The wall clock alone."""
        self.wall += seconds

    # What must hold

    def judge(self):
        """What became current, and whether it might."""
        for engine in self.engines():
            last, before = engine.keyring.last_key_id, engine.last
            engine.last = last
            if before is None or engine.settings.current is not None:
                continue
            old, new = (self.key_of(each) for each in (before, last))
            if old is new:
                continue  # nothing, or another suffix
            assert new.born_here, "a planted key became current"
            assert new.activation <= self.wall, "a key became current before its time"
            assert new.age > old.age, "an older key became current"

    def key_of(self, key_id):
        fingerprint = key_id.partition(".")[0]
        (key,) = [each for each in self.made if each.fingerprint == fingerprint]
        return key

    def teardown(self):
        """Leave nothing behind."""
        if hasattr(self, "loop"):
            self.loop.close()
            shutil.rmtree(self.directory)
