"""Say why an object was not written, without quoting the object.

A webhook chooses the text of its refusal, and a validation error may quote the object.
So only messages of known forms are repeated, and only the names in them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from hsm_kms.migrate.api import Answer

_MAX_FIELDS: Final = 5
_MAX_CHARS: Final = 200
_NAME: Final = r"[A-Za-z0-9.:/_@-]{1,253}"
_SHAPES: Final = tuple(
    re.compile(shape)
    for shape in (
        # RBAC
        rf'User "{_NAME}" cannot [a-z]+ resource "{_NAME}" in API group "(?:{_NAME})?"',
        # webhooks
        rf'admission webhook "{_NAME}" denied the request',
        rf'admission webhook "{_NAME}" does not support dry run',
        rf'failed calling webhook "{_NAME}"',
        # conversion of a CustomResourceDefinition
        rf"conversion webhook for {_NAME}, Kind={_NAME} failed",
        # ResourceQuota
        rf"exceeded quota: {_NAME}",
        # ValidatingAdmissionPolicy
        rf"ValidatingAdmissionPolicy '{_NAME}' with binding '{_NAME}' denied request",
    )
)
_FIELD: Final = re.compile(r"[A-Za-z][A-Za-z0-9.\[\]_-]{0,99}")


def known_words(message: str) -> str:
    """Return the part of a message that quotes no object, or "" if none is known."""
    found = (shape.search(message) for shape in _SHAPES)
    return next((each[0] for each in found if each), "")


def why_not(answer: Answer) -> str:
    """Return why the API server did not write an object.

    Args:
        answer: The response to the PUT.
    """
    status = answer.status
    if status is None:
        return f"HTTP {answer.code}"
    known = known_words(status.message)
    if known:
        return known
    causes = status.details.causes if status.details else ()
    fields = [cause.field for cause in causes if _FIELD.fullmatch(cause.field)]
    named = f" ({', '.join(fields[:_MAX_FIELDS])})" if fields else ""
    reason = status.reason if _FIELD.fullmatch(status.reason) else ""
    return printable(f"HTTP {answer.code} {reason}".strip() + named, _MAX_CHARS)
