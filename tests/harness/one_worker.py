"""One worker on the test token, and the requests that tests send it."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from hsm_kms.ipc.fingerprints import FINGERPRINT_BLOCK, fingerprint_of
from hsm_kms.ipc.messages import (
    Configure,
    Decrypt,
    Encrypt,
    Encrypted,
    FindKeys,
    Reply,
    Request,
    RunCanary,
)
from hsm_kms.ipc.values import Cipher, KeyRef, KeySeen, Mechanism
from hsm_kms.keys.listing import list_keys
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.login import PinLogin
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.process import Worker
from tests.harness.softhsm import TOKEN_LABEL, softhsm_module
from tests.harness.token_keys import IMPORTED, LABEL, MATERIAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

AAD = b"aad of the test"
CKU_USER = 1


def configure(**changes: Any) -> Configure:
    """First message to a worker on the test token."""
    given = {"module": softhsm_module(), "token_label": TOKEN_LABEL}
    return Configure(**(given | changes))


def gate(pin_file: Path, directory: Path) -> PinLogin:
    """Logs in with this PIN; the verdict is kept in `directory`."""
    state = StateDir(directory / "state").open()
    return PinLogin(PinSource(path=pin_file, user_type=CKU_USER), state)


class Named(NamedTuple):
    """A key, as requests name it."""

    ref: KeyRef
    fingerprint: str


def imported(ref: KeyRef = IMPORTED, value: bytes = MATERIAL) -> Named:
    """A key of known material."""
    encryptor = ciphers.Cipher(algorithms.AES(value), modes.ECB()).encryptor()  # noqa: S305 - one block
    block = encryptor.update(FINGERPRINT_BLOCK) + encryptor.finalize()
    return Named(ref, fingerprint_of(block))


def wrapping(key: Named, plaintext: bytes, aad: bytes = AAD) -> Encrypt:
    """A request to wrap."""
    return Encrypt(
        ref=key.ref,
        fingerprint=key.fingerprint,
        mechanism=Mechanism.GCM_CALLER,
        aad=aad,
        plaintext=plaintext,
    )


def unwrapping(key: Named, sealed: Encrypted, aad: bytes = AAD) -> Decrypt:
    """The request that undoes it."""
    return Decrypt(
        ref=key.ref,
        fingerprint=key.fingerprint,
        cipher=Cipher.GCM,
        aad=aad,
        iv=sealed.iv,
        ciphertext=sealed.ciphertext,
    )


def canary(key: Named) -> RunCanary:
    """A request to prove a key."""
    return RunCanary(
        ref=key.ref,
        fingerprint=key.fingerprint,
        mechanism=Mechanism.GCM_CALLER,
        aad=b"canary",
    )


@contextlib.asynccontextmanager
async def one_worker(
    env: Mapping[str, str], pin_gate: PinLogin, **changes: Any
) -> AsyncIterator[Worker]:
    """A worker that is logged in, with one session besides the control session."""
    worker = await Worker.spawn(1, env)
    try:
        await worker.configure(configure(**changes))
        await pin_gate.login(worker)
        await worker.open_sessions(worker.sessions)
        yield worker
    finally:
        await worker.leave()


async def ask(worker: Worker, request: Request) -> Reply:
    """One exchange on its session."""
    return await worker.sessions[0].exchange(request)


async def keys(worker: Worker, label: str = LABEL) -> tuple[KeySeen, ...]:
    return await list_keys(partial(ask, worker), FindKeys(label=label))


async def only_key(worker: Worker, label: str = LABEL) -> Named:
    (key,) = await keys(worker, label)
    assert key.fingerprint is not None, key
    return Named(key.ref, key.fingerprint)
