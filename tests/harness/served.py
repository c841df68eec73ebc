"""Workers and pool on a real token, without the server around them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hsm_kms.ipc.messages import (
    Cipher,
    Configure,
    Decrypt,
    Encrypt,
    Encrypted,
    FindKeys,
    KeyPage,
    KeyRef,
    Mechanism,
    RunCanary,
)
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.counts import Counts
from hsm_kms.token.login import PinGate, PinSource
from hsm_kms.token.pool import Pool
from hsm_kms.token.process import Worker
from hsm_kms.token.workers import Workers, WorkerSettings
from tests.harness.support import (
    PIN,
    SECONDS,
    TOKEN_LABEL,
    SoftHsm,
    children_of,
    softhsm_module,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.errors import HsmKmsError


LABEL = "k8s-kek"
AAD = b"aad of the test"
CKU_USER = 1


def configure(**changes: Any) -> Configure:
    """First message to a worker on the test token."""
    given = {"module": softhsm_module(), "token_label": TOKEN_LABEL}
    return Configure(**(given | changes))


def gate(pin_file: Path, directory: Path) -> PinGate:
    """Logs in with this PIN; the verdict is kept in `directory`."""
    state = StateDir(directory / "state").open()
    return PinGate(PinSource(path=pin_file, user_type=CKU_USER), state)


def wrapping(ref: KeyRef, plaintext: bytes, aad: bytes = AAD) -> Encrypt:
    """A request to wrap."""
    return Encrypt(
        ref=ref, mechanism=Mechanism.GCM_CALLER, aad=aad, plaintext=plaintext
    )


def unwrapping(ref: KeyRef, sealed: Encrypted, aad: bytes = AAD) -> Decrypt:
    """The request that undoes it."""
    return Decrypt(
        ref=ref,
        cipher=Cipher.GCM,
        aad=aad,
        iv=sealed.iv,
        ciphertext=sealed.ciphertext,
    )


class FaultLog(Alarm):
    """Keep every fault that raised the alarm.

    Attributes:
        faults: The errors, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Exception] = []

    def fault(self, error: HsmKmsError) -> None:
        self.faults.append(error)
        super().fault(error)


class Served:
    """Workers that stock a pool, on a token with one KEK.

    Args:
        hsm: The token.
        pin_file: Its PIN.
        directory: For the state directory.
        settings: Changes to `WorkerSettings`.
    """

    def __init__(
        self, hsm: SoftHsm, pin_file: Path, directory: Path, **settings: Any
    ) -> None:
        given: dict[str, Any] = {
            "configure": configure(),
            "env": hsm.env,
            "workers": 2,
            "sessions": 4,
            "call_timeout": 10.0,
            "hang_timeout": 30.0,
            "start_timeout": 20.0,
        }
        self.settings = WorkerSettings(**(given | settings))
        self._gate = gate(pin_file, directory)
        self.ref = KeyRef(LABEL, b"")
        self.alarm = FaultLog()

    async def __aenter__(self) -> Self:
        self.counts = Counts()
        self.pool = Pool(
            session_wait=self.settings.call_timeout,
            call_timeout=self.settings.call_timeout,
            alarm=self.alarm,
            counts=self.counts,
        )
        self.workers = Workers(
            self.settings,
            pool=self.pool,
            gate=self._gate,
            qualify=self.qualify,
            alarm=self.alarm,
            counts=self.counts,
        )
        self.workers.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()
        await self.workers.close()

    async def qualify(self, worker: Worker) -> None:
        """Find the key and leave a canary, as the server does."""
        keys = await worker.ask(FindKeys(label=LABEL), 5)
        assert isinstance(keys, KeyPage)
        self.ref = keys.keys[0].ref
        prove = RunCanary(ref=self.ref, mechanism=Mechanism.GCM_CALLER, aad=AAD)
        await worker.ask(prove, 5)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.01)

    async def stocked(self) -> Self:
        """Wait until all workers serve."""
        wanted = self.settings.workers
        await self.until(lambda: len(self.workers.ready) >= wanted)
        return self

    async def wrap(self, plaintext: bytes) -> Encrypted:
        """Wrap on some session."""
        reply = await self.pool.call(wrapping(self.ref, plaintext), deadline=None)
        assert isinstance(reply, Encrypted)
        return reply

    async def unwrap(self, sealed: Encrypted) -> bytes:
        """Unwrap on some session."""
        reply = await self.pool.call(unwrapping(self.ref, sealed), deadline=None)
        return reply.plaintext


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[int]:
    """Process ids of the token workers that this very process started.

    Servers of other tests may be its children too; their workers are not.
    """
    return {pid for pid in children_of(os.getpid()) if _is_worker(pid)}


def stop(pid: int) -> None:
    """Stop a process, with all its threads."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    wait_for(lambda: all(" T " in (t / "stat").read_text() for t in threads))


def _is_worker(pid: int) -> bool:
    try:
        return b"hsm_kms.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


MATERIAL = bytes(range(1, 33))
IMPORTED = KeyRef("imported", b"\x07")


@contextlib.asynccontextmanager
async def one_worker(env, pin_gate, **changes):
    """A worker that is logged in, with one session besides the control session."""
    worker = await Worker.spawn(1, env)
    try:
        await worker.configure(configure(**changes))
        await pin_gate.login(worker)
        await worker.open_sessions(worker.sessions)
        yield worker
    finally:
        await worker.leave()


async def ask(worker, request):
    """One exchange on its session."""
    return await worker.sessions[0].exchange(request)


async def keys(worker, label=LABEL):
    reply = await ask(worker, FindKeys(label=label))
    assert isinstance(reply, KeyPage), reply
    return reply.keys


async def only_ref(worker, label=LABEL):
    (key,) = await keys(worker, label)
    return key.ref


# A process of its own: the tests themselves never load a module.
_CREATE = """
import sys, pkcs11
from pkcs11 import Attribute as A
module, token, pin, label, cka_id, value = sys.argv[1:]
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as s:
    s.create_object({
        A.CLASS: pkcs11.ObjectClass.SECRET_KEY, A.KEY_TYPE: pkcs11.KeyType.AES,
        A.LABEL: label, A.ID: bytes.fromhex(cka_id), A.VALUE: bytes.fromhex(value),
        A.TOKEN: True, A.PRIVATE: True, A.SENSITIVE: True, A.EXTRACTABLE: False,
        A.ENCRYPT: True, A.DECRYPT: True,
    })
"""


def create(hsm, ref=IMPORTED, value=MATERIAL):
    """Create a key of known material from another process."""
    hsm.run(
        *(sys.executable, "-c", _CREATE, softhsm_module(), TOKEN_LABEL, PIN),
        *(ref.label, ref.cka_id.hex(), value.hex()),
    )
