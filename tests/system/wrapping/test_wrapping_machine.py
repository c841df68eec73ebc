"""Encrypts, Decrypts, rotations, outages, reloads and restarts in any order.

Every record unwraps to the same bytes, or fails with a clear error while the token is
unavailable; and v2 wraps under the key_id that Status gave last. HSM_KMS_STEPS divided
by 80 is the number of steps: each takes a real token some milliseconds or seconds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from hsm_kms.clock import now
from hsm_kms.errors import (
    CiphertextError,
    HsmKmsError,
    KeyLostError,
    KeyNotFoundError,
    KeyRetiredError,
    LocalRefusedError,
    TokenTimeoutError,
    UnavailableError,
    UnknownKeyIdError,
)
from hsm_kms.tasks import cancel_and_wait
from hsm_kms.wrapping.record import Kind, Record
from hsm_kms.wrapping.wrapper import Path as By
from hsm_kms.wrapping.wrapper import Sealed
from tests.harness.plugin import Plugin
from tests.harness.shim.driver import Shim
from tests.harness.wait import patient
from tests.system.wrapping.wrapping_rig import (
    DOWN,
    Maker,
    WrappingNode,
    on_shim,
    quick,
)

STEPS = int(os.environ.get("HSM_KMS_STEPS", "10000")) // 80
EACH = 25  # steps of one history
APIS = ("v1", "v2")

which = st.integers(min_value=0, max_value=999)
api = st.sampled_from(APIS)
wrapping = st.sampled_from(["token", "fallback", "software", "software"])
# What a worker makes of it whose token goes while it looks at the keys: none is there.
# Another one finds them again, at the latest ten seconds after the token is back.
BLIND = {KeyLostError, UnknownKeyIdError}
FLAWS = [
    *(f"{name} count={{}} rv=0x30" for name in ("C_EncryptInit", "C_DecryptInit")),
    *(f"{name} count={{}} rv=0x05" for name in ("C_Encrypt", "C_Decrypt")),
    "C_GenerateRandom count={} rv=0x121",
    "C_Encrypt count={} rv=0xb3",
    "C_Decrypt count={} abort",
    "C_Encrypt count={} after abort",
    "* jitter=20",
    "C_Decrypt count={} sleep=500",
    "C_Encrypt count={} sleep=500",
    "corrupt={}",
    "lost",
]


@dataclass(frozen=True)
class Made:
    """A record, and its plaintext.

    Args:
        sealed: The record.
        plaintext: What is in it.
        doubtful: The token may have spoilt it, and v1 has no read-back.
    """

    sealed: Sealed
    plaintext: bytes
    doubtful: bool

    @property
    def kind(self):
        return Record.decode(self.sealed.ciphertext).header.kind

    @property
    def nonce(self):
        """Return the key and nonce, which must never repeat."""
        record = Record.decode(self.sealed.ciphertext)
        return record.header.nested or record.header.key_id, record.iv


class WrappingMachine(RuleBasedStateMachine):
    """A node, what it has wrapped so far, and what happens to its token.

    Args:
        template: A token with a key that is a day old.
        pin_file: Its PIN.
    """

    def __init__(self, template, pin_file):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="hsm-kms-", dir="/tmp"))
        self.hsm = template.copy(self.directory / "hsm")
        self.shim = Shim(self.directory)
        self.maker = Maker(self.hsm, pin_file, self.directory)
        self.pin_file = pin_file
        self.loop = asyncio.new_event_loop()
        self.node = None
        self.made = []
        self.nonces = set()
        self.keys = 0
        self.suffixes = 0
        self.announced = None  # since the start of the process
        self.fault = ""  # "", "flaw", "down" or "away"
        self.calm = False  # nothing has happened since all was well
        self.taken = False  # the token was taken away since then

    def run(self, work):
        with capture_logs() as logs:
            found = self.loop.run_until_complete(work)
        assert [] == [one for one in logs if one["event"].startswith("bug")]
        return found

    @initialize(v2=wrapping, v1=wrapping)
    def start(self, v2, v1):
        """A server on a token with one key."""

        def make(hsm, **sections):
            return Plugin(self.directory, hsm, self.pin_file, **sections)

        self.plugin = on_shim(
            make,
            self.hsm,
            self.shim,
            apis=_apis(v2, v1),
            local_keys={"max_uses": 5},
            token={"call_timeout": "20s", "start_timeout": "20s"},
        )
        self.run(self._start())
        self.settle()

    async def _start(self):
        self.node = WrappingNode(self.plugin)
        self.node.engine.start()
        self.announced = None

    # Requests

    @rule(api=api, number=st.integers(min_value=1, max_value=12))
    def encrypt(self, api, number):
        """Some Encrypts at once."""
        self.run(self._encrypt(api, number))

    async def _encrypt(self, api, number):
        doubtful = api == "v1" and self.fault == "flaw"
        await asyncio.gather(*(self._wrap(api, doubtful) for _ in range(number)))

    async def _wrap(self, api, doubtful):
        plaintext = os.urandom(32)
        try:
            sealed = await self.node.wrap(plaintext, api=api, seconds=20)
        except HsmKmsError as error:
            self._may_fail(error)
            return
        made = Made(sealed, plaintext, doubtful and sealed.path is By.TOKEN)
        self.made.append(made)
        assert sealed.key_id == Record.decode(sealed.ciphertext).header.key_id
        if api == "v2" and self.announced:
            assert self.announced == sealed.key_id
        assert (made.kind is Kind.DEK_BY_TOKEN) == (sealed.path is By.TOKEN)
        how = getattr(self.node.engine.config.apis, api).wrapping
        assert how != "token" or sealed.path is By.TOKEN
        assert made.nonce not in self.nonces, "a nonce came twice"
        self.nonces.add(made.nonce)

    def _may_fail(self, error):
        """Assert that an Encrypt may fail with this error."""
        another = self.announced not in {None, self.node.look().key_id}
        if not (isinstance(error, KeyNotFoundError) and another):
            self._is_clear(error)  # else the next Status gives another key_id

    def _is_clear(self, error):
        """Assert that an error means an unavailable token, and that it may be so."""
        assert not self.calm, error
        blind = self.taken and type(error) in BLIND
        assert isinstance(error, UnavailableError) or blind, error

    @invariant()
    def traffic(self):
        """After each step: an Encrypt of each API, and a Decrypt or two."""
        if self.node is not None:
            self.run(self._traffic())

    async def _traffic(self):
        for api in APIS:
            await self._encrypt(api, 1)
        for one in self.made[-1:] + self.made[:: 1 + len(self.made) // 3]:
            await self._unwrap(one, "v2")

    @rule(number=which, api=api, clients=st.integers(min_value=1, max_value=4))
    def decrypt(self, number, api, clients):
        """Some clients ask for the same; all but the last may have no patience."""
        if self.made:
            one = self.made[number % len(self.made)]
            self.run(self._decrypt(one, api, clients))

    async def _decrypt(self, one, api, clients):
        hasty = [
            asyncio.create_task(self._unwrap(one, api, hasty=True))
            for _ in range(clients - 1)
        ]
        patient = asyncio.create_task(self._unwrap(one, api))
        await asyncio.sleep(0.001 * clients)
        for task in hasty[::2]:
            task.cancel()
        await asyncio.gather(*hasty, return_exceptions=True)
        await patient
        for task in hasty:
            assert task.cancelled() or task.result() is None

    @rule(api=api)
    def decrypt_all(self, api):
        """An API server starts: it asks for everything it has."""
        self.run(self._decrypt_all(api))

    async def _decrypt_all(self, api):
        await asyncio.gather(*(self._unwrap(one, api) for one in self.made))

    async def _unwrap(self, one, api, *, hasty=False):
        must = self.calm or self._in_memory(one)
        config = self.node.engine.config
        try:
            opened = await self.node.unwrap(
                one.sealed, api=api, seconds=0.002 if hasty else 20
            )
        except HsmKmsError as error:
            if not (hasty and type(error) is TokenTimeoutError):
                self._judge(one, error, config, must=must and not hasty)
            return
        assert one.plaintext == opened.plaintext
        assert one.kind is Kind.DEK_BY_TOKEN or opened.path is not By.TOKEN

    def _judge(self, one, error, config, *, must):
        """Assert that a Decrypt may fail with this error."""
        kind = type(error)
        if kind is KeyRetiredError:
            assert one.sealed.key_id.partition(".")[0] in config.keys.retired
        elif kind is LocalRefusedError:
            assert not config.local_keys.accept_local
            assert one.kind is Kind.DEK_BY_LOCAL_KEK
        elif kind is CiphertextError:
            assert one.doubtful
        else:
            assert not must, error
            self._is_clear(error)

    def _in_memory(self, one):
        """Return True if the record decrypts without the token."""
        ring = self.node.engine.keys.ring
        held = {key.fingerprint for key in ring.keys} if ring is not None else set()
        found = self.node.lasting.opened.find(one.sealed.ciphertext, "")
        return found is not None and one.sealed.key_id.partition(".")[0] in held

    @rule()
    def status(self):
        """The API server asks; v2 goes by what it is told."""
        state = self.node.announce()
        self.announced = state.key_id or None
        if self.calm:
            assert ("ok", "ok") == (state.state, state.healthz)

    # What happens to the token

    @precondition(lambda self: not self.fault)
    @rule(line=st.sampled_from(FLAWS), count=st.integers(min_value=1, max_value=6))
    def flaw(self, line, count):
        """Some calls go wrong."""
        self.fault, self.calm = "flaw", False
        self.shim.set(line.format(count))

    @precondition(lambda self: not self.fault)
    @rule(line=st.sampled_from(FLAWS))
    def birth(self, line):
        """Let a call for a new local KEK fail."""
        self.reload_wrapping("token", "token", accept=True)
        self.time_passes(0.03)
        self.flaw(line, 1)
        self.reload_wrapping("software", "software", accept=True)
        self.time_passes(0.03)

    @precondition(lambda self: not self.fault)
    @rule(how=st.sampled_from(["down", "away"]))
    def lose(self, how):
        """The token is gone."""
        self.fault, self.calm = how, False
        if how == "down":
            self.shim.set(DOWN)
        else:
            self.taken = True
            self.hsm.take_away()

    @precondition(lambda self: self.fault)
    @rule()
    def back(self):
        """Bring the token back; the node may need a moment."""
        self.shim.clear()
        if self.fault == "away":
            self.hsm.put_back()
        self.fault = ""

    @precondition(lambda self: not self.fault)
    @rule()
    def settle(self):
        """All is well, after a while."""
        self.run(self._settle())
        self.calm, self.taken = True, False

    async def _settle(self):
        """A look that begins now finds all well: no breaker is open after it."""
        engine = self.node.engine
        before = engine.canaries.passes
        engine.alarm.notify("a test")
        await self.node.until(lambda: engine.well and engine.canaries.passes > before)

    @rule(seconds=st.sampled_from([0.0, 0.03, 0.3]))
    def time_passes(self, seconds):
        """Background work goes on."""
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.fault != "away" and self.keys < 4)
    @rule(number=st.integers(min_value=1, max_value=2))
    def rotate(self, number):
        """Another node makes a key or two, whose time has come long ago."""
        for _ in range(number):
            self.keys += 1
            self.run(self.maker.make(now() - 30_000 + 1000 * self.keys))
        self.calm = False

    # The process

    @rule(v2=wrapping, v1=wrapping, accept=st.booleans())
    def reload_wrapping(self, v2, v1, accept):
        """Change the wrapping modes."""
        accept = accept or "token" != v1 or "token" != v2
        self.reload(apis=_apis(v2, v1), local_keys={"accept_local": accept})

    @rule(
        what=st.sampled_from(["sessions", "suffix", "retired"]),
        number=which,
        between=st.booleans(),
    )
    def reload_engine(self, what, number, between):
        """Change a setting that needs a new engine."""
        keys = self.node.engine.keys
        if what == "sessions":
            self.reload(between=between, token={"sessions_per_worker": 1 + number % 3})
        elif what == "suffix":
            self.suffixes += 1
            self.reload(between=between, keys={"suffix": f"s{self.suffixes}"})
        elif keys.ring is not None:
            ids = [key.fingerprint for key in keys.ring.keys]
            gone = [ids[number % len(ids)]] if number % 2 else []
            in_use = {keys.key_id.partition(".")[0], (self.announced or "")[:26]}
            self.reload(
                between=between,
                keys={"retired": [each for each in gone if each not in in_use]},
            )

    def reload(self, *, between=False, **sections):
        """Read another configuration; requests may come meanwhile."""
        self.run(self._reload(sections, between=between))
        self.calm = False

    async def _reload(self, sections, *, between):
        for name, section in sections.items():
            self.plugin.merge(name, section)
        self.plugin.write_config()
        self.calm = False
        attempt = asyncio.create_task(self.node.reloads.once())
        if self.fault in {"down", "away"}:  # a trial would last until start_timeout
            await asyncio.wait({attempt}, timeout=0.3)
            await cancel_and_wait(attempt)
        else:
            await attempt
        if between:
            for each in APIS:
                await self._encrypt(each, 2)
            if self.made:
                await self._decrypt(self.made[-1], "v2", 3)
        self.status()
        await self.node.in_force.handed_over()

    @rule()
    def restart(self):
        """A new process, which has opened nothing."""
        self.run(self.node.close())
        self.run(self._start())
        self.calm = False

    # At the end

    def teardown(self):
        """The token is there again: everything ever wrapped unwraps."""
        try:
            if self.node is not None:
                self._end()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self):
        try:
            self.fault and self.back()
            self.settle()
            self.reload(keys={"retired": []}, local_keys={"accept_local": True})
            self.settle()
            self.run(self.node.until(self._is_done))
            self.decrypt_all("v2")
            self.status()
            self.encrypt("v1", 2)
            self.encrypt("v2", 2)
            self.restart()
            self.settle()
            self.decrypt_all("v1")
        finally:
            self.run(self.node.close())

    def _is_done(self):
        """Return True if the newest key is current and has any local KEK it needs."""
        engine = self.node.engine
        ring = engine.keys.ring
        youngest = max(ring.keys, key=lambda key: key.age)
        return (
            len(ring.keys) == 1 + self.keys
            and ring.current.name == youngest.name
            and (not engine.standby.uses_local or engine.local.has(youngest))
        )


def _apis(v2, v1):
    return {
        "v2": {"enabled": True, "wrapping": v2},
        "v1": {"enabled": True, "wrapping": v1},
    }


@pytest.fixture
def machine(aged_template, pin_file):
    """Makes machines, on copies of one token."""
    with quick():
        yield partial(WrappingMachine, aged_template, pin_file)


@pytest.mark.timeout(patient(max(300, 2 * STEPS)))
def test_whatever_happens(machine):
    """No order of events loses what was wrapped, or wraps under the wrong key."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, STEPS // EACH),
            stateful_step_count=EACH,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # no history comes twice: there is a clock in it
            suppress_health_check=list(HealthCheck),
        ),
    )
