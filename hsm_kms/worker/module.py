"""Load the module, C_Initialize, choose the token, log in.

C_Initialize is ours (CKF_OS_LOCKING_OK, pReserved); python-pkcs11 would call it with
NULL, "I have one thread", and then use threads. Its `lib` object is therefore made
without its initialiser and works on the library that is initialised already.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkcs11._pkcs11 import lib
from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.values import TokenSeen
from hsm_kms.pdeathsig import finish_without_parent
from hsm_kms.worker import token_selection
from hsm_kms.worker.cryptoki import Cryptoki, FunctionListPointer, load
from hsm_kms.worker.errors import WorkerError, from_pkcs11

if TYPE_CHECKING:
    from pkcs11 import Session, Slot, Token

    from hsm_kms.ipc.messages import Configure, Login

_MAX_PIN_BYTES = 1024
# CKF_USER_PIN_COUNT_LOW, _FINAL_TRY, _LOCKED
_CKF_PIN_LOW = 0x0001_0000 | 0x0002_0000 | 0x0004_0000
_CKF_SO_PIN_LOW = 0x0010_0000 | 0x0020_0000 | 0x0040_0000
_CKU_SO = 0


class Module:
    """One loaded and initialised PKCS#11 module, and the token chosen in it.

    Args:
        settings: What to load and which token to choose.

    Raises:
        WorkerError: The module cannot be loaded or initialised, or not exactly one
            token answers the selector.
    """

    def __init__(self, settings: Configure) -> None:
        # Ours first: its errors carry their CK_RV, and the loader's message.
        functions = load(settings.module)
        self._lib = _uninitialised_lib(settings.module)
        self.cryptoki = Cryptoki(same_list(functions, self._lib))
        self.needs_login = settings.needs_login
        self.os_locking = self.cryptoki.initialize(settings.init_args)
        self._settings = settings
        self._token: Token | None = None
        self._library = self.cryptoki.library()
        token_selection.check_library(self._library, settings)
        if token_selection.has_selector(settings):
            self._token = token_selection.choose(self._present(), settings)

    @property
    def library(self) -> str:
        """The module's own description and version."""
        return " ".join(" ".join(self._library.values()).split())

    def tokens(self) -> tuple[TokenSeen, ...]:
        """Every slot with a token in it."""
        return tuple(self._describe(token) for token in self._present())

    def token(self) -> TokenSeen | None:
        """The chosen token."""
        return self._describe(self._token) if self._token else None

    def open_session(self) -> Session:
        """C_OpenSession without a PIN: closing it then never logs anybody out."""
        if self._token is None:
            raise WorkerError(Cause.NO_TOKEN, "no token was chosen")
        try:
            return self._token.open(rw=self._settings.read_write)
        except PKCS11Error as error:
            raise from_pkcs11("C_OpenSession", error) from None

    def login(self, session: Session, request: Login) -> None:
        """C_Login for this process, with the PIN from the file.

        Raises:
            WorkerError: The file changed or cannot be read; few tries are left and
                the request forbids using one up; the token's answer.
        """
        pin = _read_pin(request)
        try:
            if request.refuse_low:
                self._refuse_low(request.user_type)
            # Killed in the middle of it, SoftHSM would lose the token.
            with finish_without_parent():
                self.cryptoki.login(session.handle, request.user_type, pin)  # type: ignore[attr-defined]
        finally:
            pin[:] = bytes(len(pin))

    def close_all_sessions(self) -> None:
        """C_CloseAllSessions on the chosen token."""
        if self._token is not None:
            self.cryptoki.close_all_sessions(self._token.slot.slot_id)

    def _refuse_low(self, user_type: int) -> None:
        if self._token is None:
            return
        flags, _ = self.cryptoki.token_info(self._token.slot.slot_id)
        low = _CKF_SO_PIN_LOW if user_type == _CKU_SO else _CKF_PIN_LOW
        if flags & low:
            raise WorkerError(
                Cause.PIN_LOW,
                "the token reports failed PIN tries, so an unproven PIN is not tried",
            )

    def _present(self) -> list[Token]:
        try:
            slots: list[Slot] = self._lib.get_slots(token_present=True)
        except PKCS11Error as error:
            raise from_pkcs11("C_GetSlotList", error) from None
        tokens = []
        for slot in slots:
            try:
                tokens.append(slot.get_token())
            except PKCS11Error as error:
                # A slot emptied meanwhile, or one that cannot say what is in it.
                failure = from_pkcs11("C_GetTokenInfo", error)
                if slot.slot_id == self._settings.slot:
                    raise failure from None
        return tokens

    def _describe(self, token: Token) -> TokenSeen:
        flags, most = self.cryptoki.token_info(token.slot.slot_id)
        return TokenSeen(
            slot=token.slot.slot_id,
            label=token.label,
            serial=token.serial.decode("utf-8", "replace"),
            manufacturer=token.manufacturer_id,
            model=token.model,
            flags=flags,
            max_sessions=most,
            aes_mechanisms=_aes_mechanisms(token.slot),
        )


def _uninitialised_lib(path: str) -> lib:
    try:
        return lib.__new__(lib, path)  # type: ignore[call-arg]
    except PKCS11Error as error:
        raise WorkerError(Cause.MODULE, str(error)) from None


def same_list(ours: Any, module: lib) -> Any:
    """The function list that python-pkcs11 got, for both of us to use.

    p11-kit's proxy makes a new list, with sessions of its own, at every
    C_GetFunctionList. python-pkcs11 keeps its list in the first field of its object.
    """
    address = id(module) + object.__basicsize__
    theirs = FunctionListPointer.from_address(address)
    if bytes(theirs.contents.version) != bytes(ours.contents.version):
        raise WorkerError(Cause.INTERNAL, "python-pkcs11 has another layout")
    return ctypes.cast(theirs, FunctionListPointer)


def _aes_mechanisms(slot: Slot) -> tuple[str, ...]:
    try:
        offered = slot.get_mechanisms()
    except PKCS11Error:
        return ()
    # A vendor's own mechanism comes as a bare number.
    names = (getattr(mechanism, "name", "") for mechanism in offered)
    return tuple(sorted(name for name in names if name.startswith("AES_")))


def _identity(descriptor: int) -> tuple[int, int, int, int, int]:
    stat = os.fstat(descriptor)
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _read_pin(request: Login) -> bytearray:
    """The PIN without one trailing newline; the file must stay what it was."""
    try:
        with Path(request.pin_file).open("rb", buffering=0) as file:
            before = _identity(file.fileno())
            pin = bytearray(_MAX_PIN_BYTES)
            del pin[file.readinto(pin) or 0 :]
            after = _identity(file.fileno())
    except OSError as error:
        raise WorkerError(
            Cause.PIN_FILE, f"cannot read {request.pin_file}: {error.strerror}"
        ) from None
    if request.identity is not None and not before == after == request.identity:
        raise WorkerError(Cause.PIN_CHANGED, "the PIN file changed while it was read")
    if len(pin) == _MAX_PIN_BYTES:
        raise WorkerError(Cause.PIN_FILE, f"{request.pin_file} is too long for a PIN")
    if pin.endswith(b"\n"):
        del pin[-1:]
    if not pin:
        raise WorkerError(Cause.PIN_FILE, f"{request.pin_file} holds no PIN")
    return pin
