"""Make the PKCS#11 calls that python-pkcs11 lacks, or makes in one call too many.

They go by ctypes over the module's function list; ctypes releases the GIL in each.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, byref, c_ubyte, c_ulong, c_void_p
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.functions import FUNCTIONS
from hsm_kms.worker.errors import WorkerError, from_rv
from hsm_kms.worker.structs import (
    FunctionList,
    GcmParams,
    Info,
    InitializeArgs,
    Mechanism,
    SessionInfo,
    TokenInfo,
)

if TYPE_CHECKING:
    from hsm_kms.ipc.functions import Spent

CKF_OS_LOCKING_OK: Final = 0x2
CKM_AES_ECB: Final = 0x1081
CKM_AES_CBC: Final = 0x1082
CKM_AES_CBC_PAD: Final = 0x1085
CKM_AES_GCM: Final = 0x1087
CKM_SHA256_HMAC: Final = 0x0251
_LOGGED_IN_STATES: Final = frozenset({1, 3, 4})  # CKS_RO_USER, RW_USER, RW_SO
_NO_LIMIT: Final = 2**63  # CK_UNAVAILABLE_INFORMATION, and opencryptoki's 2^64 - 2


class Parameter:
    """Hold a CK_MECHANISM, and keep everything that it points to alive."""

    def __init__(self, mechanism: int, parameter: Any, *keep: object) -> None:
        self._keep = (parameter, *keep)
        self.struct = (
            Mechanism(mechanism, None, 0)
            if parameter is None
            else Mechanism(
                mechanism,
                ctypes.cast(byref(parameter), c_void_p),
                ctypes.sizeof(parameter),
            )
        )


def gcm(iv: bytearray, aad: bytes, tag_bytes: int) -> Parameter:
    """Return CKM_AES_GCM with its parameters.

    Args:
        iv: The IV, into which the token may write; empty for NULL.
        aad: Additional authenticated data, not empty.
        tag_bytes: Length of the tag, in bytes.
    """
    iv_buffer = (c_ubyte * len(iv)).from_buffer(iv) if iv else None
    aad_buffer = (c_ubyte * len(aad)).from_buffer_copy(aad)
    params = GcmParams(
        ctypes.addressof(iv_buffer) if iv_buffer is not None else None,
        len(iv),
        len(iv) * 8,
        ctypes.addressof(aad_buffer),
        len(aad),
        tag_bytes * 8,
    )
    return Parameter(CKM_AES_GCM, params, iv_buffer, aad_buffer)


def ecb() -> Parameter:
    """Return CKM_AES_ECB."""
    return Parameter(CKM_AES_ECB, None)


def cbc_pad(iv: bytes) -> Parameter:
    """Return CKM_AES_CBC_PAD with this 16-byte IV."""
    return Parameter(CKM_AES_CBC_PAD, (c_ubyte * len(iv)).from_buffer_copy(iv))


def cbc_zero_iv() -> Parameter:
    """Return CKM_AES_CBC with a zero IV, which encrypts one block as ECB does."""
    return Parameter(CKM_AES_CBC, (c_ubyte * 16)())


FunctionListPointer = POINTER(FunctionList)


def load(path: str) -> Any:
    """Load a module and return its function list.

    Args:
        path: Absolute path of the shared object.

    Returns:
        A `FunctionListPointer`; the module is never unloaded.

    Raises:
        WorkerError: The file cannot be loaded, or has no C_GetFunctionList.
    """
    try:
        get_list = ctypes.CDLL(path).C_GetFunctionList
    except (OSError, AttributeError) as error:
        raise WorkerError(Cause.MODULE, f"cannot load the module: {error}") from None
    functions = FunctionListPointer()
    rv = get_list(byref(functions))
    if rv != ckr.CKR_OK:
        raise from_rv("C_GetFunctionList", rv)
    return functions


class _Timer(threading.local):
    """Time the calls of one thread."""

    def __init__(self) -> None:
        self.spent: Spent = {}

    def add(self, name: str, seconds: float) -> None:
        """Add one call of a function."""
        calls, total = self.spent.get(name, (0, 0.0))
        self.spent[name] = calls + 1, total + seconds

    def take(self) -> Spent:
        """Return what this thread has spent since the last time."""
        spent, self.spent = self.spent, {}
        return spent


timer: Final = _Timer()


class Cryptoki:
    """Call the functions of one loaded module.

    Args:
        functions: A `FunctionListPointer`.
    """

    def __init__(self, functions: Any) -> None:
        prototype = ctypes.CFUNCTYPE(c_ulong)
        for name in FUNCTIONS:
            address = getattr(functions.contents, name)
            function: Any = prototype(address) if address else None
            if function is not None:
                function.argtypes = None
            setattr(self, f"_{name}", function)

    def call(self, name: str, *args: object) -> None:
        """Call a function by its name.

        Args:
            name: One of `FUNCTIONS`.
            args: ctypes values, as the prototype of the function expects.

        Raises:
            WorkerError: The function did not return CKR_OK, or the module lacks it.
        """
        function = getattr(self, f"_{name}")
        if function is None:
            raise from_rv(name, ckr.CKR_FUNCTION_NOT_SUPPORTED)
        began = perf_counter()
        rv: int = function(*args)
        timer.add(name, perf_counter() - began)
        if rv != ckr.CKR_OK:
            raise from_rv(name, rv)

    def initialize(self, init_args: str | None) -> bool:
        """Call C_Initialize; return True if the module grants CKF_OS_LOCKING_OK.

        Another library in this process may have initialised the module before, such as
        an OpenSSL provider. That is no fault; but it may have done so without locks.

        Args:
            init_args: Text for pReserved, or None.

        Raises:
            WorkerError: The module refuses, also without CKF_OS_LOCKING_OK.
        """
        reserved = (
            ctypes.create_string_buffer(init_args.encode()) if init_args else None
        )
        pointer = ctypes.cast(reserved, c_void_p) if reserved else None
        try:
            self._initialize(CKF_OS_LOCKING_OK, pointer)
        except WorkerError as error:
            if error.rv == ckr.CKR_CRYPTOKI_ALREADY_INITIALIZED:
                return False
            if error.rv != ckr.CKR_CANT_LOCK:
                raise
            self._initialize(0, pointer)
            return False
        return True

    def _initialize(self, flags: int, reserved: c_void_p | None) -> None:
        args = InitializeArgs(None, None, None, None, flags, reserved)
        self.call("C_Initialize", byref(args))

    def library(self) -> dict[str, str]:
        """Return the values of C_GetInfo by RFC 7512's attribute names."""
        info = Info()
        self.call("C_GetInfo", byref(info))
        version = info.libraryVersion
        return {
            "library-manufacturer": info.manufacturerID.decode("utf-8", "replace"),
            "library-description": info.libraryDescription.decode("utf-8", "replace"),
            "library-version": f"{version.major}.{version.minor}",
        }

    def token_info(self, slot: int) -> tuple[int, int | None]:
        """Return CKF_ flags and ulMaxSessionCount; None if the token has no limit."""
        info = TokenInfo()
        self.call("C_GetTokenInfo", c_ulong(slot), byref(info))
        most = info.ulMaxSessionCount
        return info.flags, most if 0 < most < _NO_LIMIT else None

    def login(self, session: int, user_type: int, pin: bytearray) -> None:
        """Call C_Login; a process that is logged in already counts as success.

        Args:
            session: CK_SESSION_HANDLE of any session on the token.
            user_type: CK_USER_TYPE.
            pin: UTF-8 bytes; the caller wipes them.

        Raises:
            WorkerError: C_Login failed.
        """
        buffer = (c_ubyte * len(pin)).from_buffer(pin)
        try:
            self.call(
                "C_Login",
                c_ulong(session),
                c_ulong(user_type),
                buffer,
                c_ulong(len(pin)),
            )
        except WorkerError as error:
            if error.rv != ckr.CKR_USER_ALREADY_LOGGED_IN:
                raise

    def logged_in(self, session: int) -> bool:
        """Return True if C_GetSessionInfo says that a user is logged in."""
        info = SessionInfo()
        self.call("C_GetSessionInfo", c_ulong(session), byref(info))
        return info.state in _LOGGED_IN_STATES

    def close_all_sessions(self, slot: int) -> None:
        """Close all sessions of this process on the token in a slot."""
        self.call("C_CloseAllSessions", c_ulong(slot))

    def random(self, session: int, count: int) -> bytes:
        """Return `count` bytes of C_GenerateRandom."""
        out = (c_ubyte * count)()
        self.call("C_GenerateRandom", c_ulong(session), out, c_ulong(count))
        result = bytes(out)
        ctypes.memset(out, 0, count)
        return result

    def encrypt(
        self, session: int, key: int, parameter: Parameter, data: bytes, most: int
    ) -> bytes:
        """Encrypt, by C_EncryptInit and one C_Encrypt into `most` bytes."""
        return self._two_calls("Encrypt", session, key, parameter, data, most)

    def decrypt(
        self, session: int, key: int, parameter: Parameter, data: bytes, most: int
    ) -> bytes:
        """Decrypt, by C_DecryptInit and one C_Decrypt into `most` bytes."""
        return self._two_calls("Decrypt", session, key, parameter, data, most)

    def sign_hmac(self, session: int, key: int, data: bytes) -> bytes:
        """Return the HMAC of `data`, by C_SignInit and C_Sign with CKM_SHA256_HMAC."""
        return self._two_calls(
            "Sign", session, key, Parameter(CKM_SHA256_HMAC, None), data, 64
        )

    def verify_hmac(self, session: int, key: int, data: bytes, tag: bytes) -> None:
        """Verify an HMAC, by C_VerifyInit and C_Verify with CKM_SHA256_HMAC.

        Raises:
            WorkerError: The tag is wrong, or the call failed.
        """
        mechanism = Parameter(CKM_SHA256_HMAC, None)
        self.call(
            "C_VerifyInit", c_ulong(session), byref(mechanism.struct), c_ulong(key)
        )
        self.call(
            "C_Verify",
            c_ulong(session),
            data,
            c_ulong(len(data)),
            tag,
            c_ulong(len(tag)),
        )

    def _two_calls(
        self,
        verb: str,
        session: int,
        key: int,
        parameter: Parameter,
        data: bytes,
        most: int,
    ) -> bytes:
        self.call(
            f"C_{verb}Init", c_ulong(session), byref(parameter.struct), c_ulong(key)
        )
        out = (c_ubyte * most)()
        length = c_ulong(most)
        self.call(
            f"C_{verb}", c_ulong(session), data, c_ulong(len(data)), out, byref(length)
        )
        result = ctypes.string_at(out, min(length.value, most))
        ctypes.memset(out, 0, most)
        return result
