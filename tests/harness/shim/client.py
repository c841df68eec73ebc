"""A PKCS#11 program to be hung and crashed: one JSON command a line, one answer.

`python -m tests.harness.shim.client MODULE LABEL`. The worker's own module and session
layers run in it, so that what the shim does is seen as the product sees it.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag
from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.messages import Configure
from hsm_kms.worker import cryptoki
from hsm_kms.worker.errors import WorkerError, from_pkcs11
from hsm_kms.worker.module import Module

AAD = b"aad"


class Client:
    """The commands; each takes and returns what JSON can hold."""

    def __init__(self, path: str, label: str) -> None:
        self._settings = Configure(module=path, token_label=label, read_write=True)
        self._sessions: list[Any] = []

    def start(self) -> bool:
        """C_Initialize and choose the token; whether locking was granted."""
        self._module = Module(self._settings)
        self._cryptoki = self._module.cryptoki
        return self._module.os_locking

    def open(self) -> None:
        self._sessions.append(self._module.open_session())

    def close(self) -> None:
        self._sessions.pop().close()

    def login(self, pin: str) -> None:
        self._cryptoki.login(self._handle, 1, bytearray(pin.encode()))

    def logged_in(self) -> bool:
        return self._cryptoki.logged_in(self._handle)

    def find(self) -> list[int]:
        return [key.handle for key in self._sessions[-1].get_objects()]

    def generate(self, cka_id: str) -> None:
        self._sessions[-1].generate_key(
            KeyType.AES,
            256,
            id=bytes.fromhex(cka_id),
            label="new",
            store=True,
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template={Attribute.PRIVATE: True},
        )

    def encrypt(self, key: int, iv: str, data: str) -> list[str]:
        """The IV afterwards, and what C_Encrypt gave."""
        buffer = bytearray.fromhex(iv)
        plain = bytes.fromhex(data)
        out = self._cryptoki.encrypt(
            *(self._handle, key, cryptoki.gcm(buffer, AAD, 16), plain, 200)
        )
        return [buffer.hex(), out.hex()]

    def decrypt(self, key: int, iv: str, data: str) -> str:
        parameter = cryptoki.gcm(bytearray.fromhex(iv), AAD, 16)
        return self._cryptoki.decrypt(
            *(self._handle, key, parameter, bytes.fromhex(data), 200)
        ).hex()

    def ecb(self, key: int) -> str:
        return self._block(key, cryptoki.ecb())

    def cbc(self, key: int) -> str:
        return self._block(key, cryptoki.cbc_zero_iv())

    def storm(self, key: int, threads: int, rounds: int) -> int:
        """Encrypt on a session for each thread at once; how many calls failed."""
        handles = [self._module.open_session().handle for _ in range(threads)]  # type: ignore[attr-defined]

        def one(handle: int) -> int:
            failed = 0
            for _ in range(rounds):
                parameter = cryptoki.gcm(bytearray(12), AAD, 16)
                try:
                    self._cryptoki.encrypt(handle, key, parameter, bytes(32), 200)
                except WorkerError:
                    failed += 1
            return failed

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(one, handles))

    def token(self) -> dict[str, Any]:
        """Flags, most sessions, AES mechanisms."""
        seen = self._module.token()
        assert seen is not None
        return {
            "flags": seen.flags,
            "sessions": seen.max_sessions,
            "mechanisms": seen.aes_mechanisms,
        }

    def _block(self, key: int, parameter: Any) -> str:
        return self._cryptoki.encrypt(self._handle, key, parameter, bytes(16), 80).hex()

    @property
    def _handle(self) -> int:
        handle: int = self._sessions[-1].handle
        return handle


def answer(client: Client, command: str, arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"result": getattr(client, command)(*arguments)}
    except WorkerError as error:
        return {"rv": error.rv, "function": error.function}
    except PKCS11Error as error:
        return {"rv": from_pkcs11("", error).rv, "function": ""}


def main() -> None:
    client = Client(*sys.argv[1:])
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(answer(client, command, arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
