"""Define the events of the audit stream; docs/audit.md explains them.

1. No field holds a plaintext, a ciphertext, a PIN or a key, in any form.
2. `VERSION` changes when a field is removed, renamed or means something else. A new
   event, or a new field, is no new version.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

VERSION: Final = 1


CommandName: TypeAlias = Literal[
    "keys generate",
    "keys rotate",
    "keys cancel",
    "keys retire",
    "keys destroy",
    "token retry-pin",
    "etcd decrypt",
]


class _Event(Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events; a field that does not apply is null, never absent."""


class Header(Struct, frozen=True, kw_only=True):
    """Define what stands in front of the fields of each event.

    Args:
        v: `VERSION`.
        seq: Number of the record in its process, from 1; a lost record has one, too.
        time: When the event happened, RFC 3339 in UTC, with microseconds.
        source: "serve", or "command".
        pid: Process ID of the program that made the record.
    """

    v: int
    seq: int
    time: str
    source: str
    pid: int


class Request(_Event, tag="request", frozen=True, kw_only=True):
    """Tell how an Encrypt or a Decrypt ended.

    Args:
        method: Such as "v2.Decrypt".
        uid: The client's name for the request, cleaned and shortened; null in v1.
        key_id: The key of the request; authenticated only if `code` is OK; null if it
            is not known.
        path: What encrypted or decrypted: "token", "local" or "local-uncached"; null
            if nothing did.
        code: Name of the gRPC status code.
        error: Class of the error; null if `code` is OK or CANCELLED.
        seconds: Time from the arrival of the request to this record.
    """

    method: Literal["v2.Encrypt", "v2.Decrypt", "v1.Encrypt", "v1.Decrypt"]
    uid: str | None
    key_id: str | None
    path: Literal["token", "local", "local-uncached"] | None
    code: str
    error: str | None
    seconds: float


class Client(_Event, tag="client", frozen=True, kw_only=True):
    """Tell that a process has connected to the KMS socket, or has left it.

    Args:
        state: "connected" or "gone".
        client_pid: Process ID of the client; 0 if it is in a PID namespace that this
            process cannot see.
        client_uid: Its user ID when it connected.
        client_gid: Its group ID when it connected.
        program: Name of its program, as /proc shows it; null if unknown.
    """

    state: Literal["connected", "gone"]
    client_pid: int
    client_uid: int
    client_gid: int
    program: str | None


class Key(_Event, tag="key", frozen=True, kw_only=True):
    """Tell that the state of a key has changed on this node.

    Args:
        key_id: The key.
        state: As in docs/metrics.md, or "gone": no longer on the token.
        before: Its state before; null if this process did not know the key, or has
            just begun to record.
        label: CKA_LABEL of the key.
        cka_id: CKA_ID of the key, in hex.
        generated_on_token: True if the token says that it generated the key.
        activation: When the key becomes or became current, RFC 3339 in UTC; null if it
            has no activation time.
    """

    key_id: str
    state: Literal[
        "pending", "current", "decrypt-only", "retired", "refused", "foreign", "gone"
    ]
    before: (
        Literal["pending", "current", "decrypt-only", "retired", "refused", "foreign"]
        | None
    )
    label: str
    cka_id: str
    generated_on_token: bool
    activation: str | None


class Pin(_Event, tag="pin", frozen=True, kw_only=True):
    """Tell how a login ended, or that a verdict on the PIN was cleared.

    Args:
        result: "accepted", "rejected", "failed" (the token said nothing about the PIN),
            or "cleared": an operator vouches for the PIN.
        pin_file: The PIN file; null if the PIN was typed.
        worker: Process ID of the worker that logged in; null for "cleared".
        function: The PKCS#11 function that failed; null if none did.
        ckr: Its return value by name; null if there is none.
    """

    result: Literal["accepted", "rejected", "failed", "cleared"]
    pin_file: str | None
    worker: int | None
    function: str | None
    ckr: str | None


class Config(_Event, tag="config", frozen=True, kw_only=True):
    """Tell that a changed configuration file was applied or rejected.

    Args:
        result: "applied" or "rejected".
        changed: The settings that differ from those in force, as far as they can be
            told.
        reason: Why the file was rejected; null if it was applied.
    """

    result: Literal["applied", "rejected"]
    changed: tuple[str, ...]
    reason: str | None


class Wrapping(_Event, tag="wrapping", frozen=True, kw_only=True):
    """Tell that the wrapping mode of an API has changed.

    Args:
        api: "v2" or "v1".
        wrapping: The mode now.
        before: The mode before.
    """

    api: Literal["v2", "v1"]
    wrapping: Literal["token", "fallback", "software"]
    before: Literal["token", "fallback", "software"]


class Server(_Event, tag="server", frozen=True, kw_only=True):
    """Tell that the server has started, or stops.

    Args:
        state: "started" or "stopped".
        version: Version of hsm-kms.
        config: The configuration file.
        user: User ID of the server.
    """

    state: Literal["started", "stopped"]
    version: str
    config: str
    user: int


class Command(_Event, tag="command", frozen=True, kw_only=True):
    """Tell that an operator's command begins, has done its work, or has failed.

    Args:
        command: The command, such as "keys destroy".
        phase: "begun" before it does anything, then "done" or "failed".
        key_id: The key; null if it is not known yet, or if no key is concerned.
        object: Key in etcd of the object, which has its namespace and name; null if
            the command is not about an object.
        destination: "stdout", or the file that the object goes to; null as above.
        options: The options by which the command does more than usual.
        user: User ID of the command.
        login_user: ID of the user who logged in, also behind su or sudo; null if
            unknown.
        error: Class of the error; null unless `phase` is "failed".
    """

    command: CommandName
    phase: Literal["begun", "done", "failed"]
    key_id: str | None
    object: str | None
    destination: str | None
    options: tuple[str, ...]
    user: int
    login_user: int | None
    error: str | None


class Lost(_Event, tag="lost", frozen=True, kw_only=True):
    """Tell that records are missing before this one.

    Args:
        records: Their number.
        since: When the first of them was lost, RFC 3339 in UTC.
        reason: Why they could not be written.
    """

    records: int
    since: str
    reason: str


Event: TypeAlias = (
    Request | Client | Key | Pin | Config | Wrapping | Server | Command | Lost
)
