"""The table of PKCS#11 return values, and the errors that are made of it."""

from __future__ import annotations

import inspect

import pkcs11.exceptions
import pytest

from hsm_kms.errors import TokenError
from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Fault
from hsm_kms.token.errors import error_from
from hsm_kms.worker.errors import from_pkcs11, from_rv

# Raised by python-pkcs11 itself, without a return value behind them.
PYTHON_SIDE = {
    "PKCS11Error",
    "MultipleObjectsReturned",
    "MultipleTokensReturned",
    "NoSuchKey",
    "NoSuchToken",
}
CLASSES = {
    name: kind
    for name, kind in vars(pkcs11.exceptions).items()
    if inspect.isclass(kind) and issubclass(kind, pkcs11.exceptions.PKCS11Error)
}


def test_names_are_unique():
    """Each name stands for one number and begins as in the standard."""
    names = [ckr.name(rv) for rv in ckr.known()]

    assert sorted(set(names)) == sorted(names)
    assert all(name.startswith("CKR_") for name in names)
    assert dict(zip(names, ckr.known(), strict=True)) == ckr.BY_NAME


def test_no_success_and_no_vendor_value_in_the_table():
    """The table holds only errors of the standard, in ascending order."""
    assert ckr.CKR_OK not in ckr.known()
    assert all(rv < ckr.CKR_VENDOR_DEFINED for rv in ckr.known())
    assert sorted(ckr.known()) == list(ckr.known())


@pytest.mark.parametrize(
    ("rv", "name"),
    [
        (0x004, "CKR_0x4"),
        (0x999, "CKR_0x999"),
        (0x8000_0000, "CKR_VENDOR_0x80000000"),
        (0xCE53_4351, "CKR_VENDOR_0xce534351"),
        (2**64 - 1, "CKR_VENDOR_0xffffffffffffffff"),
    ],
)
def test_unknown_values(rv, name):
    """An unknown value has the class DEVICE and is named by its number."""
    assert (name, Fault.DEVICE) == (ckr.name(rv), ckr.fault(rv))


def test_every_exception_has_a_number():
    """Each exception class of python-pkcs11 leads to its CKR."""
    for name in set(CLASSES) - PYTHON_SIDE:
        error = from_pkcs11("C_Function", CLASSES[name]())
        assert error.rv in ckr.known(), name
        assert ckr.fault(error.rv) == error.cause, name
        assert f"C_Function returned {ckr.name(error.rv)}" == error.detail


@pytest.mark.parametrize(
    ("name", "rv"),
    [
        ("GeneralError", 0x005),
        ("EncryptedDataInvalid", 0x040),
        ("FunctionCancelled", 0x050),
        ("ObjectHandleInvalid", 0x082),
        ("PinLocked", 0x0A4),
        ("SessionCount", 0x0B1),
        ("SessionReadWriteSOExists", 0x0B8),
        ("TokenNotRecognised", 0x0E1),
        ("UserNotLoggedIn", 0x101),
        ("AnotherUserAlreadyLoggedIn", 0x104),
    ],
)
def test_some_exceptions(name, rv):
    """Exception classes in other spellings than the CKR's lead to its number."""
    assert rv == from_pkcs11("", CLASSES[name]()).rv


def test_no_two_exceptions_share_a_number():
    """No two exception classes lead to the same number."""
    numbers = [from_pkcs11("", CLASSES[n]()).rv for n in set(CLASSES) - PYTHON_SIDE]

    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("text", "rv"),
    [
        ("Unmapped error code 0x68", 0x068),
        ("Unmapped error code 0x80000102", 0x8000_0102),
        ("Buffer was too small. Should never see this.", 0x150),
        ("Initialisation error (not initialized).", 0x190),
        ("Initialisation error (already initialized).", 0x191),
        ("something else", None),
        ("", None),
    ],
)
def test_numbers_in_text(text, rv):
    """The number in the text of a bare PKCS11Error counts; without one it is DEVICE."""
    error = from_pkcs11("C_Sign", pkcs11.exceptions.PKCS11Error(text))

    assert rv == error.rv
    assert "C_Sign" == error.function
    assert (ckr.fault(rv) if rv is not None else Fault.DEVICE) == error.cause


@pytest.mark.parametrize("rv", [0x30, 0x80000001])
def test_error_keeps_function_and_number(rv):
    """An error keeps the PKCS#11 function and the CK_RV for the log."""
    error = error_from(from_rv("C_Encrypt", rv).as_message())

    assert isinstance(error, TokenError)
    assert ("C_Encrypt", rv) == (error.function, error.rv)
    assert f"C_Encrypt returned {ckr.name(rv)}" == str(error)
