"""Keys, clocks, workers, restarts and reloads in any order: what a node writes under.

Conformance 15, 17, 18 and 37. HSM_KMS_STEPS is how many steps to take.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from hsm_kms.errors import HsmKmsError
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.state_dir.directory import StateDir
from tests.harness.examples import examples
from tests.unit.keys.node_rig import LABEL
from tests.unit.keys.node_rules import NodeRules, which

STEPS = int(os.environ.get("HSM_KMS_STEPS", examples(1_000, 30_000)))
EACH = 50  # steps of one history
suffixes = st.sampled_from([None, "two", "three", "four"])


class NodeMachine(NodeRules):
    """One node, from its first start on: looks, requests, restarts and reloads."""

    @rule(
        first=st.sampled_from(["status", "encrypt_v2", "one_looks", "restart"]),
        kind=st.sampled_from(["good", "good", "planted", "offending"]),
        gap=st.sampled_from([0, 0, 1, 91]),
        steps=st.lists(
            st.sampled_from(
                ["look", "look", "status", "status", "v2", "v2", "v1", "restart"]
            ),
            max_size=6,
        ),
    )
    def rotation(self, first, kind, gap, steps):
        """A key is made, all see it, its time comes, and something happens then."""
        self.key_appears(60, kind, "all")
        self.all_look(1)
        if first != "one_looks":
            getattr(self, first)()
        self.time_passes(60 + gap)
        does = {
            "look": lambda: self.all_look(1),
            "status": self.status,
            "v2": self.encrypt_v2,
            "v1": self.encrypt_v1,
            "restart": self.restart,
        }
        for step in steps:
            does[step]()

    # Looks

    @rule(who=which)
    def one_looks(self, who):
        """One worker's regular look."""
        if peers := self.peers():
            engine, peer = peers[who % len(peers)]
            self.run(engine.look(peer))
            self.judge()

    @rule(rounds=st.integers(min_value=1, max_value=2))
    def all_look(self, rounds):
        """Regular looks of all workers, and those that are missing come."""
        for _ in range(rounds):
            self.loop.now += 1
            for engine, peer in self.peers():
                self.run(engine.look(peer))
                self.judge()
        for engine in self.engines():
            self.both_come(engine)

    @rule()
    def fresh_one_looks(self):
        """A fresh worker reads the keys."""
        self.loop.now += 1
        for engine in self.engines():
            self.run(engine.visit())
        self.judge()

    @rule(number=which)
    def local_kek_comes(self, number):
        """A local KEK under a key is created, or missing again."""
        key = self.made[number % len(self.made)]
        for engine in self.engines():
            engine.lacking ^= {key.fingerprint}

    def judge(self):
        """No key becomes current by its time before its local KEK exists."""
        for engine in self.engines():
            last, before = engine.keyring.last_key_id, engine.last
            if before is None or engine.settings.current is not None:
                continue
            old, new = (self.key_of(each) for each in (before, last))
            assert old is new or new.fingerprint not in engine.lacking
        super().judge()

    # Requests

    @rule()
    def status(self):
        """The API server asks for Status."""
        self.announcer = self.engine
        state = self.engine.health.announce()
        if not state.key_id:
            return
        if self.said[-1:] != [state.key_id]:
            assert state.key_id not in self.said, "a key_id came back"
            self.said.append(state.key_id)
        self.announced = state.key_id
        kept = StateDir(self.directory).open()
        known = {each.key_id for each in kept.former_keys()}
        assert state.key_id in known | {kept.last_key().key_id}

    @rule()
    def observer(self):
        """`hsm-kms status` asks, and changes nothing."""
        self.engine.health.look()

    @rule()
    def encrypt_v2(self):
        """v2 writes under what Status said, or not at all."""
        key = self.choice(self.announcer.keyring.announced_ring)
        if key is None:
            return
        if self.announced is not None:
            assert self.announced == key.key_id
        self.can_read(key, self.announcer)

    @rule()
    def encrypt_v1(self):
        """v1 writes under what the node takes for current."""
        key = self.choice(self.engine.keyring.ring)
        if key is not None:
            keyring = self.engine.keyring
            assert keyring._frozen or keyring.last_key_id == key.key_id
            self.can_read(key, self.engine)

    def choice(self, ring):
        if ring is None:
            return None
        try:
            key = ring.for_encrypt()
        except HsmKmsError:
            return None
        assert not key.violations
        return key

    @rule()
    def what_was_written_opens(self):
        """Whatever was wrapped opens, if the token has its key under its names."""
        self.all_look(3)
        self.fresh_one_looks()
        self.all_look(3)
        ring = self.engine.keyring.ring  # the engine in force alone answers Decrypt
        if ring is None:
            return
        views = [peer.sees for peer in self.engine.peers.ready or ()]
        seen = set.intersection(*views) if views else set()
        for key in self.written:
            unusable = self.damaged | self.engine.settings.retired
            if key.fingerprint in unusable or key not in seen & self.token:
                continue
            assert key.name == ring.for_decrypt(key.key_id, key.cipher).name

    def can_read(self, key, writer):
        """A record can be decrypted as long as the token has its key.

        What the engine that leaves writes is read by the one in force, which may have
        to look for a key that was lost meanwhile: `what_was_written_opens` does.
        """
        self.written.append(self.key_of(key.key_id))
        if writer is not self.engine:
            return
        # A planted key decrypts only where it is named, or was current before.
        there = any(each.name == key.name for each in self.token) and key.born_here
        if there and key.fingerprint not in self.engine.settings.retired:
            ring = self.engine.keyring.ring
            assert key.name == ring.for_decrypt(key.key_id, key.cipher).name

    # The process

    @rule()
    def restart(self):
        """The process starts again with what the state directory holds."""
        self.coming = None
        self.begin()

    @rule(
        current=st.none() | which,
        suffix=suffixes,
        retired=st.none() | st.none() | which,
    )
    @precondition(lambda self: self.coming is None)
    def reload_begins(self, current, suffix, retired):
        """Another configuration: the old engine goes on while the new one starts."""
        named = [] if retired is None else [self.made[retired % len(self.made)]]
        changed = KeySettings(
            label=LABEL,
            shared=self.settings.shared,
            suffix=suffix,
            current=None
            if current is None
            else self.made[current % len(self.made)].fingerprint,
            retired=frozenset(key.fingerprint for key in named),
        )
        self.settings = changed  # what the file says is what a restart reads
        self.began_with = self.engine.keyring.last_key_id
        self.coming = self.engine_of(changed)

    @precondition(lambda self: self.coming is not None)
    @rule()
    def reload_ends(self):
        """The new engine takes over, unless that would make things worse."""
        old, new, self.coming = self.engine, self.coming, None
        self.run(new.come())
        if old.keyring.last_key_id != self.began_with:
            return  # the old engine switched meanwhile: the trial begins anew
        if new.state().state != "ok" and old.state().state == "ok":
            return
        old.step_back()
        self.engine = new.take_effect()
        self.run(new.come())
        self.judge()

    # What must hold

    @invariant()
    def what_was_left_stays_left(self):
        """No former key_id becomes current again."""
        if not hasattr(self, "engine"):
            return
        keyring = self.engine.keyring
        former = [each.key_id for each in keyring.memory.former]
        assert len(former) == len(set(former))
        assert keyring.last_key_id not in former


TestRotation = NodeMachine.TestCase
TestRotation.__doc__ = "No order of events makes a node write under the wrong key."
TestRotation.settings = settings(
    max_examples=max(1, STEPS // EACH),
    stateful_step_count=EACH,
    suppress_health_check=[HealthCheck.too_slow],
)
