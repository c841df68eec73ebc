"""Name the objects at which a list fails, and make the token to go on behind them."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.etcd.text import printable
from hsm_kms.migrate.refusals import known_words

if TYPE_CHECKING:
    from hsm_kms.migrate.api import Answer
    from hsm_kms.migrate.resources import Resource

_KEY: Final = re.compile(r'unable to transform key "(/[^"\\]+)": (.*)', re.DOTALL)
_UNDECRYPTED: Final = re.compile(
    r"storage is not transformable revision=-?\d+: (.*)", re.DOTALL
)
_PASSING: Final = re.compile(r"code = (Unavailable|DeadlineExceeded)")
_MAX_CHARS: Final = 200


class Unreadable(msgspec.Struct, frozen=True):
    """Name an object that the API server cannot read.

    Args:
        object: namespace/name, or name.
        reason: Why, in the words of the API server. It could not decrypt the object,
            so the words quote none of its content.
    """

    object: str
    reason: str

    @property
    def passing(self) -> bool:
        """Return True if the API server did not reach the KMS plugin that decrypts."""
        return _PASSING.search(self.reason) is not None

    def path(self, resource: Resource) -> str:
        """Return the URL path of the object."""
        namespace, _, name = self.object.rpartition("/")
        return f"{resource.path(namespace)}/{name}"


class Unlisted(msgspec.Struct, frozen=True):
    """Name a namespace with an object that the API server cannot read.

    Args:
        namespace: The namespace; its objects behind that object are not listed.
        reason: Why, without any content of the object.
    """

    namespace: str
    reason: str


class _Token(msgspec.Struct):
    """Describe a `continue` token, whose form Kubernetes promises not to change.

    Args:
        v: Version of the form.
        rv: Revision of etcd; -1 for the latest.
        start: First key, relative to the keys that are listed.
    """

    v: str = "meta.k8s.io/v1"
    rv: int = -1
    start: str = ""


def unreadable_in(answer: Answer, resource: Resource) -> Unreadable | None:
    """Return the first object that a failed list names, or None if it names none.

    By default the message of the API server names one; with the feature gate
    AllowUnsafeMalformedObjectDeletion the causes name all objects of the page.

    Args:
        answer: The response to the list.
        resource: The resource that was listed.
    """
    status = answer.status
    if status is None:
        return None
    causes = status.details.causes if status.details else ()
    named = {each.field: each for each in causes if each.field.startswith("/")}
    if named:
        first = named[min(named)]
        return _named(first.field, _reason(first.message), resource)
    found = _KEY.search(status.message)
    return _named(found[1], found[2], resource) if found else None


def token_at(start: str) -> str:
    """Return the `continue` token with which a list begins at a key.

    Args:
        start: The key, relative to the keys that are listed.
    """
    encoded = msgspec.json.encode(_Token(start=start))
    return base64.urlsafe_b64encode(encoded).decode().rstrip("=")


def start_of(token: str) -> str:
    """Return the key with which a list begins; "" if that is unknown.

    Args:
        token: A `continue` token, or "".
    """
    try:
        encoded = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return msgspec.json.decode(encoded, type=_Token).start
    except (binascii.Error, msgspec.MsgspecError):
        return ""


def _reason(message: str) -> str:
    """Return what a message says, unless it is about the content of the object."""
    undecrypted = _UNDECRYPTED.search(message)
    if undecrypted:
        return undecrypted[1]
    return known_words(message) or "the API server cannot decode it"


def _named(key: str, reason: str, resource: Resource) -> Unreadable:
    parts = key.split("/")[-2:] if resource.namespaced else key.split("/")[-1:]
    return Unreadable("/".join(parts), printable(reason.strip(), _MAX_CHARS))
