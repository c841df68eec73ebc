"""Initialise a SoftHSM token without showing a PIN to the process list.

softhsm2-util takes PINs as arguments, where every user of the machine can read
them, or from a terminal. This calls the same PKCS#11 functions with PINs read
from files. Usage: init_token.py MODULE LABEL SO_PIN_FILE PIN_FILE, with
SOFTHSM2_CONF set. A token that is there already is left alone; one whose user
PIN is not set yet gets it.
"""

# ruff: noqa: INP001 - a script, no part of the package

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

CK_ULONG = ctypes.c_ulong
USER_PIN_INITIALIZED = 0x008
TOKEN_INITIALIZED = 0x400
SERIAL_AND_READ_WRITE = 0x006
SECURITY_OFFICER = 0
LABEL_BYTES = 32
DAMAGED = (
    "; a token is damaged, as SoftHSM leaves one if it is killed while it writes: "
    "if no key on it is in use, remove the directory and run this again"
)


class TokenInfo(ctypes.Structure):
    """Define CK_TOKEN_INFO of PKCS#11 2.40, section 3.2."""

    _fields_ = (
        ("label", ctypes.c_char * LABEL_BYTES),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", CK_ULONG),
        ("counts", CK_ULONG * 10),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_char * 16),
    )


class Module:
    """Call a loaded PKCS#11 module; any failure ends the program with its CK_RV."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self.call("C_Initialize", None)

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of the module."""
        rv = getattr(self._library, function)(*arguments)
        if rv:
            cure = DAMAGED if function == "C_GetTokenInfo" else ""
            sys.exit(f"init_token.py: {function} failed with CK_RV {rv:#x}{cure}")

    def slots(self) -> list[int]:
        """Return the IDs of all slots with a token, even an uninitialised one."""
        count = CK_ULONG()
        self.call("C_GetSlotList", ctypes.c_ubyte(1), None, ctypes.byref(count))
        slots = (CK_ULONG * count.value)()
        self.call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
        return list(slots)

    def info(self, slot: int) -> TokenInfo:
        """Return what the module says about the token in a slot."""
        info = TokenInfo()
        self.call("C_GetTokenInfo", CK_ULONG(slot), ctypes.byref(info))
        return info

    def init_token(self, slot: int, so_pin: bytes, label: bytes) -> None:
        """Initialise the token in the slot."""
        self.call("C_InitToken", CK_ULONG(slot), so_pin, CK_ULONG(len(so_pin)), label)

    def init_pin(self, slot: int, so_pin: bytes, pin: bytes) -> None:
        """Set the user PIN, as the security officer."""
        session = CK_ULONG()
        flags = CK_ULONG(SERIAL_AND_READ_WRITE)
        self.call(
            "C_OpenSession", CK_ULONG(slot), flags, None, None, ctypes.byref(session)
        )
        officer = CK_ULONG(SECURITY_OFFICER)
        self.call("C_Login", session, officer, so_pin, CK_ULONG(len(so_pin)))
        self.call("C_InitPIN", session, pin, CK_ULONG(len(pin)))
        self.call("C_CloseSession", session)

    def find(self, label: bytes) -> int | None:
        """Return the slot of the token with this label."""
        for slot in self.slots():
            info = self.info(slot)
            # c_char fields end at a NUL; PKCS#11 pads with blanks.
            if info.flags & TOKEN_INITIALIZED and info.label == label:
                return slot
        return None

    def free_slot(self) -> int:
        """Return the slot that SoftHSM reserves for the next token."""
        for slot in self.slots():
            if not self.info(slot).flags & TOKEN_INITIALIZED:
                return slot
        return sys.exit("init_token.py: no slot without a token")


def main(path: str, name: str, so_pin_file: str, pin_file: str) -> None:
    """Initialise the token, or finish an interrupted initialisation."""
    label = name.encode().ljust(LABEL_BYTES)
    so_pin = Path(so_pin_file).read_bytes()
    pin = Path(pin_file).read_bytes()
    module = Module(path)
    slot = module.find(label)
    if slot is None:
        module.init_token(module.free_slot(), so_pin, label)
        slot = module.find(label)
    if slot is None:
        sys.exit("init_token.py: the new token is not there")
    if not module.info(slot).flags & USER_PIN_INITIALIZED:
        module.init_pin(slot, so_pin, pin)
    module.call("C_Finalize", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
