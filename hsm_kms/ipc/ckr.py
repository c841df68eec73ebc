"""Define number, name and class of each PKCS#11 return value.

Numbers and names are those of PKCS#11 2.40 and 3.1, section 3.6 ("Function return
values"). `token.errors` says what follows from a class.
"""

from __future__ import annotations

from enum import StrEnum

CKR_OK = 0x000
CKR_CANT_LOCK = 0x00A
CKR_FUNCTION_NOT_SUPPORTED = 0x054
CKR_BUFFER_TOO_SMALL = 0x150
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_OBJECT_HANDLE_INVALID = 0x082
CKR_KEY_HANDLE_INVALID = 0x060
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
CKR_VENDOR_DEFINED = 0x8000_0000


class Fault(StrEnum):
    """Name the class of a return value: where its cause lies."""

    REQUEST = "request"  # the input is bad; the session works
    AMBIGUOUS = "ambiguous"  # input, session or device: a new session may work
    SESSION = "session"  # a new session would work
    LOGIN = "login"  # the process was logged out, or its handles are stale
    DEVICE = "device"  # the module, or the device behind it
    CAPACITY = "capacity"  # the token opens no more sessions
    PIN = "pin"  # the token judged the PIN and rejected it
    OPERATOR = "operator"  # an operator must change something


class Cause(StrEnum):
    """Name the cause of a failure that is no single CK_RV."""

    MODULE = "module"  # the module cannot be loaded, or is no PKCS#11 module
    NO_TOKEN = "no-token"  # noqa: S105 - a PKCS#11 token
    BLANK = "blank"  # the module shows no initialised token at all
    SEVERAL_TOKENS = "several-tokens"
    NO_KEY = "no-key"
    SEVERAL_KEYS = "several-keys"
    OTHER_KEY = "other-key"  # the key with these names is not the one that is meant
    UNNAMED = "unnamed"  # a key without a label or CKA_ID by which to find it
    PIN_FILE = "pin-file"  # the PIN file cannot be read
    PIN_CONTENT = "pin-content"  # the PIN file holds something besides a PIN
    PIN_CHANGED = "pin-changed"  # the PIN file is no longer the one that was checked
    PIN_COUNTED = "pin-counted"  # C_Login failed, and the token counted a failed try
    PIN_LOW = "pin-low"  # the token reports that few tries are left
    NOT_AUTHENTIC = "not-authentic"  # a bad ciphertext: a known-good one decrypts
    UNSETTLED = "unsettled"  # a failed decrypt without a known-good record to compare
    SESSION_FAILS = "session-fails"  # not even a known-good record decrypts
    NOT_PROVEN = "not-proven"  # the token returned a wrong result
    INTERNAL = "internal"  # a bug in hsm-kms


_TABLE: dict[int, tuple[str, Fault]] = {
    0x001: ("CKR_CANCEL", Fault.DEVICE),
    0x002: ("CKR_HOST_MEMORY", Fault.DEVICE),
    0x003: ("CKR_SLOT_ID_INVALID", Fault.DEVICE),
    0x005: ("CKR_GENERAL_ERROR", Fault.AMBIGUOUS),
    0x006: ("CKR_FUNCTION_FAILED", Fault.AMBIGUOUS),
    0x007: ("CKR_ARGUMENTS_BAD", Fault.AMBIGUOUS),
    0x008: ("CKR_NO_EVENT", Fault.DEVICE),
    0x009: ("CKR_NEED_TO_CREATE_THREADS", Fault.OPERATOR),
    0x00A: ("CKR_CANT_LOCK", Fault.OPERATOR),
    0x010: ("CKR_ATTRIBUTE_READ_ONLY", Fault.OPERATOR),
    0x011: ("CKR_ATTRIBUTE_SENSITIVE", Fault.OPERATOR),
    0x012: ("CKR_ATTRIBUTE_TYPE_INVALID", Fault.OPERATOR),
    0x013: ("CKR_ATTRIBUTE_VALUE_INVALID", Fault.OPERATOR),
    0x01B: ("CKR_ACTION_PROHIBITED", Fault.OPERATOR),
    0x020: ("CKR_DATA_INVALID", Fault.REQUEST),
    0x021: ("CKR_DATA_LEN_RANGE", Fault.REQUEST),
    0x030: ("CKR_DEVICE_ERROR", Fault.DEVICE),
    0x031: ("CKR_DEVICE_MEMORY", Fault.DEVICE),
    0x032: ("CKR_DEVICE_REMOVED", Fault.DEVICE),
    0x040: ("CKR_ENCRYPTED_DATA_INVALID", Fault.REQUEST),
    0x041: ("CKR_ENCRYPTED_DATA_LEN_RANGE", Fault.REQUEST),
    0x042: ("CKR_AEAD_DECRYPT_FAILED", Fault.REQUEST),
    0x050: ("CKR_FUNCTION_CANCELED", Fault.SESSION),
    0x051: ("CKR_FUNCTION_NOT_PARALLEL", Fault.OPERATOR),
    0x054: ("CKR_FUNCTION_NOT_SUPPORTED", Fault.OPERATOR),
    0x060: ("CKR_KEY_HANDLE_INVALID", Fault.LOGIN),
    0x062: ("CKR_KEY_SIZE_RANGE", Fault.OPERATOR),
    0x063: ("CKR_KEY_TYPE_INCONSISTENT", Fault.OPERATOR),
    0x064: ("CKR_KEY_NOT_NEEDED", Fault.OPERATOR),
    0x065: ("CKR_KEY_CHANGED", Fault.SESSION),
    0x066: ("CKR_KEY_NEEDED", Fault.OPERATOR),
    0x067: ("CKR_KEY_INDIGESTIBLE", Fault.OPERATOR),
    0x068: ("CKR_KEY_FUNCTION_NOT_PERMITTED", Fault.OPERATOR),
    0x069: ("CKR_KEY_NOT_WRAPPABLE", Fault.OPERATOR),
    0x06A: ("CKR_KEY_UNEXTRACTABLE", Fault.OPERATOR),
    0x070: ("CKR_MECHANISM_INVALID", Fault.OPERATOR),
    0x071: ("CKR_MECHANISM_PARAM_INVALID", Fault.OPERATOR),
    0x082: ("CKR_OBJECT_HANDLE_INVALID", Fault.LOGIN),
    0x090: ("CKR_OPERATION_ACTIVE", Fault.SESSION),
    0x091: ("CKR_OPERATION_NOT_INITIALIZED", Fault.SESSION),
    0x0A0: ("CKR_PIN_INCORRECT", Fault.PIN),
    0x0A1: ("CKR_PIN_INVALID", Fault.PIN),
    0x0A2: ("CKR_PIN_LEN_RANGE", Fault.PIN),
    0x0A3: ("CKR_PIN_EXPIRED", Fault.PIN),
    0x0A4: ("CKR_PIN_LOCKED", Fault.PIN),
    0x0B0: ("CKR_SESSION_CLOSED", Fault.SESSION),
    0x0B1: ("CKR_SESSION_COUNT", Fault.CAPACITY),
    0x0B3: ("CKR_SESSION_HANDLE_INVALID", Fault.SESSION),
    0x0B4: ("CKR_SESSION_PARALLEL_NOT_SUPPORTED", Fault.OPERATOR),
    0x0B5: ("CKR_SESSION_READ_ONLY", Fault.OPERATOR),
    0x0B6: ("CKR_SESSION_EXISTS", Fault.OPERATOR),
    0x0B7: ("CKR_SESSION_READ_ONLY_EXISTS", Fault.OPERATOR),
    0x0B8: ("CKR_SESSION_READ_WRITE_SO_EXISTS", Fault.OPERATOR),
    0x0C0: ("CKR_SIGNATURE_INVALID", Fault.REQUEST),
    0x0C1: ("CKR_SIGNATURE_LEN_RANGE", Fault.REQUEST),
    0x0D0: ("CKR_TEMPLATE_INCOMPLETE", Fault.OPERATOR),
    0x0D1: ("CKR_TEMPLATE_INCONSISTENT", Fault.OPERATOR),
    0x0E0: ("CKR_TOKEN_NOT_PRESENT", Fault.DEVICE),
    0x0E1: ("CKR_TOKEN_NOT_RECOGNIZED", Fault.DEVICE),
    0x0E2: ("CKR_TOKEN_WRITE_PROTECTED", Fault.OPERATOR),
    0x0F0: ("CKR_UNWRAPPING_KEY_HANDLE_INVALID", Fault.LOGIN),
    0x0F1: ("CKR_UNWRAPPING_KEY_SIZE_RANGE", Fault.OPERATOR),
    0x0F2: ("CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Fault.OPERATOR),
    0x100: ("CKR_USER_ALREADY_LOGGED_IN", Fault.SESSION),
    0x101: ("CKR_USER_NOT_LOGGED_IN", Fault.LOGIN),
    0x102: ("CKR_USER_PIN_NOT_INITIALIZED", Fault.OPERATOR),
    0x103: ("CKR_USER_TYPE_INVALID", Fault.OPERATOR),
    0x104: ("CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Fault.OPERATOR),
    0x105: ("CKR_USER_TOO_MANY_TYPES", Fault.OPERATOR),
    0x110: ("CKR_WRAPPED_KEY_INVALID", Fault.REQUEST),
    0x112: ("CKR_WRAPPED_KEY_LEN_RANGE", Fault.REQUEST),
    0x113: ("CKR_WRAPPING_KEY_HANDLE_INVALID", Fault.LOGIN),
    0x114: ("CKR_WRAPPING_KEY_SIZE_RANGE", Fault.OPERATOR),
    0x115: ("CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Fault.OPERATOR),
    0x120: ("CKR_RANDOM_SEED_NOT_SUPPORTED", Fault.OPERATOR),
    0x121: ("CKR_RANDOM_NO_RNG", Fault.OPERATOR),
    0x130: ("CKR_DOMAIN_PARAMS_INVALID", Fault.OPERATOR),
    0x140: ("CKR_CURVE_NOT_SUPPORTED", Fault.OPERATOR),
    0x150: ("CKR_BUFFER_TOO_SMALL", Fault.SESSION),
    0x160: ("CKR_SAVED_STATE_INVALID", Fault.OPERATOR),
    0x170: ("CKR_INFORMATION_SENSITIVE", Fault.OPERATOR),
    0x180: ("CKR_STATE_UNSAVEABLE", Fault.OPERATOR),
    0x190: ("CKR_CRYPTOKI_NOT_INITIALIZED", Fault.DEVICE),
    0x191: ("CKR_CRYPTOKI_ALREADY_INITIALIZED", Fault.DEVICE),
    0x1A0: ("CKR_MUTEX_BAD", Fault.DEVICE),
    0x1A1: ("CKR_MUTEX_NOT_LOCKED", Fault.DEVICE),
    0x1B0: ("CKR_NEW_PIN_MODE", Fault.OPERATOR),
    0x1B1: ("CKR_NEXT_OTP", Fault.OPERATOR),
    0x1B5: ("CKR_EXCEEDED_MAX_ITERATIONS", Fault.OPERATOR),
    0x1B6: ("CKR_FIPS_SELF_TEST_FAILED", Fault.DEVICE),
    0x1B7: ("CKR_LIBRARY_LOAD_FAILED", Fault.OPERATOR),
    0x1B8: ("CKR_PIN_TOO_WEAK", Fault.PIN),
    0x1B9: ("CKR_PUBLIC_KEY_INVALID", Fault.OPERATOR),
    0x200: ("CKR_FUNCTION_REJECTED", Fault.OPERATOR),
    0x201: ("CKR_TOKEN_RESOURCE_EXCEEDED", Fault.DEVICE),
    0x202: ("CKR_OPERATION_CANCEL_FAILED", Fault.SESSION),
    0x203: ("CKR_KEY_EXHAUSTED", Fault.OPERATOR),
}

BY_NAME: dict[str, int] = {name: rv for rv, (name, _) in _TABLE.items()}

UNSUPPORTED = frozenset(
    BY_NAME[each]
    for each in (
        "CKR_MECHANISM_INVALID",
        "CKR_MECHANISM_PARAM_INVALID",
        "CKR_ARGUMENTS_BAD",
        "CKR_FUNCTION_NOT_SUPPORTED",
        "CKR_KEY_FUNCTION_NOT_PERMITTED",
        "CKR_KEY_TYPE_INCONSISTENT",
    )
)
"""Values by which tokens say that they do not offer a mechanism, or not this way."""


def name(rv: int) -> str:
    """Return the PKCS#11 name of a return value, or a name made of its number."""
    if rv in _TABLE:
        return _TABLE[rv][0]
    return f"CKR_VENDOR_{rv:#x}" if rv >= CKR_VENDOR_DEFINED else f"CKR_{rv:#x}"


def fault(rv: int) -> Fault:
    """Return the class of a return value: DEVICE if it is unknown or a vendor's."""
    return _TABLE[rv][1] if rv in _TABLE else Fault.DEVICE


def known() -> tuple[int, ...]:
    """Return every return value in the table."""
    return tuple(_TABLE)
