"""Test errors as values: their one-line text, and copies of kept errors."""

from __future__ import annotations

import pytest

from hsm_kms.errors import ConfigError, HsmKmsError, PinRejectedError, TokenError
from hsm_kms.state_dir.store import StateWriteError


def raised(error):
    """Raise an error and return it, with the traceback that this gave it."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        TokenError("C_Encrypt failed", function="C_Encrypt", rv=0x30, hint="wait"),
        PinRejectedError("rejected", function="C_Login", rv=0xA0),
        ConfigError(["token.module: missing", "keys.label: missing"]),
        StateWriteError("the disk is full", hint="make room"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_again(error):
    """A copy has the class and all fields of its error, and was not raised yet."""
    copy = raised(error).again()

    assert type(error) is type(copy)
    assert copy is not error
    assert (error.args, vars(error)) == (copy.args, vars(copy))
    assert (str(error), error.sentence) == (str(copy), copy.sentence)
    assert error.__traceback__ is not None
    assert copy.__traceback__ is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (HsmKmsError("the disk is full"), "the disk is full"),
        (
            HsmKmsError("the disk is full", hint="make room"),
            "the disk is full; make room",
        ),
        (HsmKmsError(), ""),
    ],
    ids=["cause", "cause and cure", "nothing"],
)
def test_sentence(error, sentence):
    """The sentence of an error is its cause, and its cure if there is one."""
    assert sentence == error.sentence
