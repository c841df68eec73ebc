"""Find what an operator must mend, although Status may say ok.

A finding has an id, which never changes and is documented in docs/commands.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hsm_kms.clock import seconds_since, spell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

V1_VERSION: Final = "v1beta1"
ASKED_SECONDS: Final = 180.0
"""kube-apiserver asks for Status once a minute; this is three times as long."""

_DRIVER: Final = "repair the driver that the PKCS#11 module uses, or reboot the node"
_ASK: Final = (
    "see whether kube-apiserver runs, and whether its EncryptionConfiguration names "
    "this socket: `hsm-kms check --encryption-config FILE`"
)


class Finding(NamedTuple):  # msgspec and dataclasses take long to import
    """Hold one finding.

    Args:
        id: What was found, such as "not-asked".
        name: What it is about; the line begins with it.
        text: The finding in words.
        hint: What to do; None if the text says it.
    """

    id: str
    name: str
    text: str
    hint: str | None = None


def findings(server: Mapping[str, Any], version: str) -> list[Finding]:
    """Return what must be mended, the most urgent first.

    Args:
        server: The content of /status.
        version: The version that Status returned; `V1_VERSION` if the server serves
            KMS v1 alone, in which nobody asks for Status.
    """
    found = [*_of_token(server), *_of_keys(server)]
    if version != V1_VERSION:
        found += _of_api_server(server)
    return [*found, *_of_node(server)]


def _of_api_server(server: Mapping[str, Any]) -> Iterator[Finding]:
    asked, started = server.get("last_status"), server.get("started")
    since = asked or started
    if since is None or seconds_since(since) < ASKED_SECONDS:
        return
    ago = spell(seconds_since(since))
    if asked is None:
        ago += ", since the server started"
    text = f"kube-apiserver has not asked for {ago}; it asks once a minute"
    yield Finding("not-asked", "last Status", text, _ASK)


def _of_token(server: Mapping[str, Any]) -> Iterator[Finding]:
    if server["breaker"] == "open":
        text = "open: requests fail without asking the token"
        yield Finding("breaker", "breaker", text)
    if server["token"].get("slow"):
        text = "slow: a canary passed, but took longer than token.call_timeout"
        yield Finding("token-slow", "token", text)
    if stuck := server["workers"].get("unkillable"):
        pids = ", ".join(map(str, stuck))
        text = f"process {pids}; a call hangs in the kernel"
        name = "workers that cannot be killed"
        yield Finding("unkillable", name, text, _DRIVER)
    health_key = server["canary"].get("health_key") or {}
    if error := health_key.get("error"):
        text = f"unusable, the token is looked at without a key: {error}"
        yield Finding("health-key", "health key", text)
    if server["pin"] in {"rejected", "corrupt", "absent"}:
        text = f"{server['pin']}: a worker that starts cannot log in"
        yield Finding("pin", "pin", text, "run `hsm-kms check`")


def _of_keys(server: Mapping[str, Any]) -> Iterator[Finding]:
    for key in server["keys"]:
        name = f"{key['state']} {key['key_id']}"
        if key["state"] == "foreign":
            yield Finding("foreign-key", name, "decrypts nothing: see keys.foreign")
        elif key["state"] == "current" and key["policy_violations"]:
            text = f"violates the key policy: {', '.join(key['policy_violations'])}"
            yield Finding("key-policy", name, text)
        elif key["state"] == "pending" and key.get("doubt"):
            yield Finding("pending-key", name, key["doubt"])
    for key in server.get("unidentified_keys", ()):
        cka_id = key["cka_id"] or "(empty)"
        text = f"cannot be used: {key['reason']}"
        yield Finding("unidentified-key", f"key with CKA_ID {cka_id}", text)


def _of_node(server: Mapping[str, Any]) -> Iterator[Finding]:
    for listener in server.get("http", ()):
        if listener["error"]:
            text = f"not listening: {listener['error']}"
            yield Finding("http", f"http {listener['address']}", text)
    audit = server.get("audit", {})
    if audit.get("error"):
        then = "records are lost" if audit.get("lost") else "records wait"
        if audit["refuses"]:
            then = "requests are refused"
        yield Finding("audit", "audit", f"{then}: {audit['error']}")
    config = server.get("config", {"in_force": True})
    if not config["in_force"]:
        text = f"not in force since {config['since']}: {config['error']}"
        yield Finding("config", "config", text)
