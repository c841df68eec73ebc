"""Read what one node reports about its keys: from its metrics, or from a saved status.

Nothing here is authenticated: whoever has a node's port can answer in its place.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.parser import text_string_to_metric_families

from hsm_kms.errors import HsmKmsError
from hsm_kms.http.values import HEALTH
from hsm_kms.log import key_id_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES: Final = 4 << 20
# What is shown on a terminal has no character that a terminal obeys.
_VERSION: Final = re.compile(r"[A-Za-z0-9.+-]{1,64}")
_KEY_ID_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TOO_MUCH: Final = (RecursionError, OverflowError)  # depth, and a number, of JSON
_KEY_STATE: Final = re.compile(r"[a-z-]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Hold what one node reports.

    Args:
        version: Version of hsm-kms.
        state: One of `HEALTH`.
        current: Hash of the key_id that Status announces; "" while there is none.
        keys: State of each key held, by hash of its key_id.
        activations: When keys become or became current, in seconds since the Unix
            epoch, by hash of the key_id; keys without an activation time are missing.
    """

    version: str
    state: str
    current: str
    keys: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what hsm-kms does not report."""
        hashes = {*self.keys, *self.activations, *filter(None, [self.current])}
        if not (
            _VERSION.fullmatch(self.version)
            and self.state in HEALTH
            and all(map(_KEY_ID_HASH.fullmatch, hashes))
            and all(map(_KEY_STATE.fullmatch, self.keys.values()))
        ):
            raise ValueError


def scrape(host: str, port: int, seconds: float) -> NodeState:
    """Read the metrics of a running server.

    Args:
        host: Its name or address.
        port: The port of `http.listen`.
        seconds: Longest wait for each read.

    Raises:
        HsmKmsError: Nothing answers, or something else than hsm-kms.
    """
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", "/metrics")
        with connection.getresponse() as answer:
            body = answer.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "strerror", None) or ascii(str(error).strip())[1:-1]
        raise HsmKmsError(
            f"the metrics cannot be read: {cause}",
            hint="see http.listen in the configuration of that node; or save what "
            "`hsm-kms status -o json` prints there, and give the file",
        ) from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise HsmKmsError(f"the answer to GET /metrics is {answer.status}")
    return from_metrics(body.decode("utf-8", "replace"))


def from_metrics(text: str) -> NodeState:
    """Return the state of a node from its page of metrics.

    Raises:
        HsmKmsError: These are not the metrics of hsm-kms.
    """
    try:
        families = {each.name: each for each in text_string_to_metric_families(text)}
        rows = {
            name: [(sample.labels, sample.value) for sample in family.samples]
            for name, family in families.items()
        }
        return NodeState(
            version=rows["hsm_kms_build_info"][0][0]["version"],
            state=next(s["state"] for s, value in rows["hsm_kms_health"] if value),
            current=next(
                (s["key_id_hash"] for s, _ in rows.get("hsm_kms_current_key_info", ())),
                "",
            ),
            keys={
                s["key_id_hash"]: s["state"]
                for s, _ in rows.get("hsm_kms_key_info", ())
            },
            activations={
                s["key_id_hash"]: value
                for s, value in rows.get("hsm_kms_key_activation_timestamp_seconds", ())
            },
        )
    except (ValueError, LookupError, StopIteration):
        raise HsmKmsError("the answer is not that of hsm-kms") from None


def from_status(text: str) -> NodeState:
    """Return the state of a node from what `hsm-kms status -o json` printed there.

    Raises:
        HsmKmsError: It is something else, or the admin socket did not answer then.
    """
    try:
        server = json.loads(text)["server"]
        keys: list[dict[str, Any]] = server["keys"]
        return NodeState(
            version=str(server["version"]),
            state=server["state"],
            current=str(server["key_id_hash"]),
            keys={key_id_hash(key["key_id"]): str(key["state"]) for key in keys},
            activations={
                key_id_hash(key["key_id"]): float(key["activation"])
                for key in keys
                if key["activation"]
            },
        )
    except (ValueError, LookupError, TypeError, AttributeError, *_TOO_MUCH):
        raise HsmKmsError(
            "this is not the output of `hsm-kms status -o json`",
            hint="run it as the service's user, who can ask the admin socket, too",
        ) from None
