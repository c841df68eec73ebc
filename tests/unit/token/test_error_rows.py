"""What the table says of each cause, and which hint and error a failure gets by it."""

from __future__ import annotations

import pytest

from hsm_kms import errors
from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.messages import Encrypt, FindKeys
from hsm_kms.token.errors import (
    BY_REQUEST,
    NOT_OPENED,
    TABLE,
    BreakerEffect,
    SessionEffect,
    error_from,
    row_for,
)
from tests.unit.token.test_errors import failed

KEPT, LAST = SessionEffect.KEPT, SessionEffect.LENT_LAST
COUNTS, RESETS, IGNORES = BreakerEffect
SERVICE = "see whether the HSM and its client service are up"

# cause: the error · the session · the breaker · if it is reported · part of the hint
ROWS = {
    Fault.REQUEST: (errors.CiphertextError, KEPT, RESETS, False, "compare `scope`"),
    Fault.AMBIGUOUS: (errors.TokenError, KEPT, COUNTS, True, SERVICE),
    Fault.SESSION: (errors.SessionLostError, LAST, IGNORES, True, None),
    Fault.LOGIN: (
        errors.WorkerLostError,
        SessionEffect.RETIRED,
        IGNORES,
        True,
        None,
    ),
    Fault.DEVICE: (errors.TokenError, KEPT, COUNTS, True, SERVICE),
    Fault.CAPACITY: (errors.TokenError, KEPT, IGNORES, True, "lower token.workers"),
    Fault.PIN: (errors.PinRejectedError, KEPT, IGNORES, True, "put the right PIN"),
    Fault.OPERATOR: (errors.MechanismError, KEPT, IGNORES, True, "permit it"),
    Cause.MODULE: (errors.TokenAbsentError, KEPT, IGNORES, True, "check token.module"),
    Cause.NO_TOKEN: (errors.TokenAbsentError, KEPT, IGNORES, True, "token list"),
    Cause.BLANK: (errors.TokenAbsentError, KEPT, IGNORES, True, "token.env"),
    Cause.SEVERAL_TOKENS: (
        errors.TokenAbsentError,
        KEPT,
        IGNORES,
        True,
        "token_serial",
    ),
    Cause.NO_KEY: (errors.KeyNotFoundError, KEPT, IGNORES, True, "keys generate"),
    Cause.SEVERAL_KEYS: (errors.KeyAmbiguousError, KEPT, IGNORES, True, "its own"),
    Cause.OTHER_KEY: (errors.KeyReplacedError, KEPT, RESETS, True, "back"),
    Cause.UNNAMED: (errors.KeyUnsuitableError, KEPT, IGNORES, True, "UTF-8"),
    Cause.PIN_FILE: (errors.PinUnavailableError, KEPT, IGNORES, True, "readable"),
    Cause.PIN_CONTENT: (errors.PinUnavailableError, KEPT, IGNORES, True, "newline"),
    Cause.PIN_CHANGED: (errors.PinUnavailableError, KEPT, IGNORES, True, None),
    Cause.PIN_COUNTED: (errors.PinRejectedError, KEPT, IGNORES, True, "the right PIN"),
    Cause.PIN_LOW: (errors.PinUnavailableError, KEPT, IGNORES, True, "retry-pin"),
    Cause.NOT_AUTHENTIC: (
        errors.CiphertextError,
        KEPT,
        RESETS,
        False,
        "compare `scope`",
    ),
    Cause.UNSETTLED: (errors.UndecidedError, KEPT, IGNORES, False, SERVICE),
    Cause.SESSION_FAILS: (errors.SessionLostError, LAST, COUNTS, True, SERVICE),
    Cause.NOT_PROVEN: (errors.TokenError, KEPT, COUNTS, True, "do not use this token"),
    Cause.INTERNAL: (errors.TokenError, KEPT, COUNTS, True, "this is a bug"),
}


@pytest.mark.parametrize("cause", ROWS)
def test_row(cause):
    """Each cause has the effects that the protocol of tokens and PINs calls for."""
    row = TABLE[cause]
    *effects, hint = ROWS[cause]

    assert effects == [row.error, row.session, row.breaker, row.reported]
    if hint is None:
        assert row.hint is None
    else:
        assert hint in row.hint


def test_every_cause_is_listed():
    """No cause is left out above."""
    assert set(ROWS) == set(TABLE)


def test_rows_of_single_requests():
    """A DEK that the token refuses is no ciphertext, and costs the token nothing."""
    ((key, row),) = BY_REQUEST.items()

    assert (Encrypt, Fault.REQUEST) == key
    assert (errors.RequestError, None) == (row.error, row.hint)
    assert (KEPT, IGNORES, False) == (row.session, row.breaker, row.reported)


def test_row_of_a_full_token():
    """A session that could not be opened again is not lent until it can be."""
    full = failed(Fault.CAPACITY, "C_OpenSession")
    row = row_for(full, FindKeys(label="kek"), others=True)

    assert NOT_OPENED is row
    assert (errors.SessionLostError, None) == (row.error, row.hint)
    assert SessionEffect.WITHDRAWN is row.session
    assert (IGNORES, True) == (row.breaker, row.reported)


@pytest.mark.parametrize("cause", ROWS)
def test_final_error(cause):
    """After the last try no error is one after which the pool would try again."""
    row = TABLE[cause]
    lost = row.error in {errors.SessionLostError, errors.WorkerLostError}
    final = row.final_from(failed(cause))

    assert lost == row.retried
    assert (errors.TokenError if lost else row.error) is type(final)
    assert ("it failed", row.hint) == (str(final), final.hint)
    assert ("C_Function", 0x30) == (final.function, final.rv)


@pytest.mark.parametrize("cause", ROWS)
def test_error_without_a_request(cause):
    """Outside the pool a failure becomes the error of its own row."""
    error = error_from(failed(cause))

    assert ROWS[cause][0] is type(error)
    assert TABLE[cause].hint == error.hint


@pytest.mark.parametrize(
    ("function", "name", "hint"),
    [
        ("C_GetFunctionList", None, "token.env"),
        ("C_Initialize", "CKR_GENERAL_ERROR", "token.env"),
        ("C_GetInfo", "CKR_CANT_LOCK", "token.env"),
        ("C_GetSlotList", "CKR_DEVICE_ERROR", "token.env"),
        ("C_GenerateKey", None, "whether the token can be changed"),
        (
            "C_SetAttributeValue",
            "CKR_GENERAL_ERROR",
            "whether the token can be changed",
        ),
        ("C_CopyObject", "CKR_DEVICE_ERROR", "whether the token can be changed"),
        ("C_DestroyObject", "CKR_GENERAL_ERROR", "whether the token can be changed"),
        ("C_GenerateKey", "CKR_SESSION_READ_ONLY", "set token.read_write: true"),
        ("C_X", "CKR_CANT_LOCK", "several threads"),
        ("C_X", "CKR_LIBRARY_LOAD_FAILED", "check token.module"),
        ("C_X", "CKR_TOKEN_WRITE_PROTECTED", "whether the token can be changed"),
        ("C_X", "CKR_USER_PIN_NOT_INITIALIZED", "set the user PIN"),
        ("C_Login", "CKR_USER_TYPE_INVALID", "correct token.login"),
        ("C_X", "CKR_GENERAL_ERROR", SERVICE),
        ("C_X", None, SERVICE),
    ],
)
def test_hint_of_a_function_or_a_return_value(function, name, hint):
    """A hint for the function or the return value goes before the row's own hint."""
    rv = None if name is None else ckr.BY_NAME[name]
    error = error_from(failed(Fault.DEVICE, function, rv))

    assert hint in error.hint
