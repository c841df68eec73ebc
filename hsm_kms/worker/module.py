"""Load the PKCS#11 module, initialise it, choose the token, log in.

hsm-kms calls C_Initialize itself, with CKF_OS_LOCKING_OK and pReserved; python-pkcs11
would pass NULL, which means "one thread only", and then use threads. The `lib` object
of python-pkcs11 is therefore made without its initialiser, and works on the module
that is initialised already.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any

from pkcs11._pkcs11 import lib
from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.values import TokenSeen
from hsm_kms.pdeathsig import finish_without_parent
from hsm_kms.worker import token_selection
from hsm_kms.worker.cryptoki import Cryptoki, FunctionListPointer, load
from hsm_kms.worker.errors import WorkerError, from_pkcs11
from hsm_kms.worker.pin import read_pin
from hsm_kms.worker.slots import TolerantSlots

if TYPE_CHECKING:
    from pkcs11 import Session, Slot, Token

    from hsm_kms.ipc.messages import Configure, Login

# CKF_USER_PIN_COUNT_LOW, _FINAL_TRY, _LOCKED
_CKF_PIN_LOW = 0x0001_0000 | 0x0002_0000 | 0x0004_0000
_CKF_SO_PIN_LOW = 0x0010_0000 | 0x0020_0000 | 0x0040_0000
_CKU_SO = 0


class Module:
    """Hold a loaded and initialised PKCS#11 module, and the token chosen in it.

    Args:
        settings: The module to load and the token to choose.

    Raises:
        WorkerError: The module cannot be loaded or initialised, or the selector does
            not match exactly one token.
    """

    def __init__(self, settings: Configure) -> None:
        # By ctypes first: these errors carry the CK_RV and the loader's message.
        functions = load(settings.module)
        self._lib = _uninitialised_lib(settings.module)
        theirs = same_list(functions, self._lib)
        self.cryptoki = Cryptoki(theirs)
        self._slots = TolerantSlots(theirs.contents)
        self._slots.install(list_of(self._lib))
        self.needs_login = settings.needs_login
        self.by_cka_id = settings.by_cka_id
        self.os_locking = self.cryptoki.initialize(settings.init_args)
        self._settings = settings
        self._token: Token | None = None
        self._library = self.cryptoki.library()
        token_selection.check_library(self._library, settings)
        if token_selection.has_selector(settings):
            self._token = token_selection.choose(self._present(), settings)

    @property
    def library(self) -> str:
        """Return the module's own description and version."""
        return " ".join(" ".join(self._library.values()).split())

    def tokens(self) -> tuple[TokenSeen, ...]:
        """Return every slot with a token in it that describes itself."""
        found: list[TokenSeen] = []
        for token in self._present():
            with contextlib.suppress(WorkerError):
                found.append(self._describe(token))
        return tuple(found)

    def token(self) -> TokenSeen | None:
        """Return the chosen token, or None if the settings select none."""
        return self._describe(self._token) if self._token else None

    def open_session(self) -> Session:
        """Return a new session, opened without a PIN.

        python-pkcs11 logs out when it closes a session that it opened with a PIN.

        Raises:
            WorkerError: No token is selected, or C_OpenSession failed. Whatever it
                returned, the device is at fault unless it has no session left.
        """
        if self._token is None:
            raise WorkerError(Cause.NO_TOKEN, "the configuration selects no token")
        try:
            return self._token.open(rw=self._settings.read_write)
        except PKCS11Error as error:
            failure = from_pkcs11("C_OpenSession", error)
            if failure.cause != Fault.CAPACITY:
                failure.cause = Fault.DEVICE
            raise failure from None

    def login(self, session: Session, request: Login) -> None:
        """Log this process in, with the PIN from the PIN file.

        Raises:
            WorkerError: The PIN file changed, cannot be read or holds something besides
                a PIN, few tries are left and the request forbids to use one up, or
                C_Login failed.
        """
        pin = read_pin(request)
        try:
            if request.refuse_low:
                self._refuse_low(request.user_type)
            # SoftHSM would lose the token if it were killed while it logs in.
            with finish_without_parent():
                self.cryptoki.login(session.handle, request.user_type, pin)  # type: ignore[attr-defined]
        except WorkerError as error:
            raise self._judge(error, request) from None
        finally:
            pin[:] = bytes(len(pin))

    def close_all_sessions(self) -> None:
        """Close all sessions of this process on the chosen token."""
        if self._token is not None:
            self.cryptoki.close_all_sessions(self._token.slot.slot_id)

    def _judge(self, error: WorkerError, request: Login) -> WorkerError:
        """Return the error to report: the token may have counted a failed try.

        Some tokens answer a wrong PIN with a general error. Where the flags were clear
        before C_Login, they tell the two apart.
        """
        if error.function != "C_Login" or error.cause == Fault.PIN:
            return error
        try:
            counted = request.refuse_low and self._is_low(request.user_type)
        except WorkerError:
            return error  # the token is gone
        if not counted:
            return error
        return WorkerError(
            Cause.PIN_COUNTED,
            f"{error.detail}, and the token then reported a failed PIN try",
            function=error.function,
            rv=error.rv,
        )

    def _is_low(self, user_type: int) -> bool:
        if self._token is None:
            return False
        flags, _ = self.cryptoki.token_info(self._token.slot.slot_id)
        return bool(flags & (_CKF_SO_PIN_LOW if user_type == _CKU_SO else _CKF_PIN_LOW))

    def _refuse_low(self, user_type: int) -> None:
        if self._is_low(user_type):
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
                # The slot was emptied meanwhile, or cannot describe its token.
                failure = from_pkcs11("C_GetTokenInfo", error)
                if slot.slot_id == self._settings.slot:
                    raise failure from None
            except UnicodeDecodeError:
                continue  # its label or serial number is no text
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
    """Return the function list of python-pkcs11, for ctypes to use as well.

    At every C_GetFunctionList, p11-kit's proxy makes a new list with sessions of its
    own. python-pkcs11 keeps its list in the first field of its object.

    Args:
        ours: The list that ctypes got, to compare the versions.
        module: The `lib` object of python-pkcs11.

    Raises:
        WorkerError: The first field holds something else.
    """
    theirs = list_of(module)
    if bytes(theirs.contents.version) != bytes(ours.contents.version):
        raise WorkerError(
            Cause.INTERNAL,
            "this version of python-pkcs11 keeps its function list elsewhere",
        )
    return ctypes.cast(theirs, FunctionListPointer)


def list_of(module: lib) -> Any:
    """Return the first field of a `lib` object, its pointer to a function list."""
    return FunctionListPointer.from_address(id(module) + object.__basicsize__)


def _aes_mechanisms(slot: Slot) -> tuple[str, ...]:
    try:
        offered = slot.get_mechanisms()
    except PKCS11Error:
        return ()
    # A vendor's own mechanism comes as a bare number.
    names = (getattr(mechanism, "name", "") for mechanism in offered)
    return tuple(sorted(name for name in names if name.startswith("AES_")))
