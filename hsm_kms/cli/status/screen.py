"""Print one screen that says how the server is: a line for each thing.

The first lines are the answer to Status, then come state, cause and cure, and then what
must be mended. The rest can be left unread while all is well.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.colour import Tone, coloured
from hsm_kms.cli.hints import with_config
from hsm_kms.clock import now, seconds_since, spell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hsm_kms.cli.status.findings import Finding

NEVER_ASKED: Final = "kube-apiserver has not asked (KMS v1 never does)"
_TONES: Final = {
    "ok": Tone.GOOD,
    "starting": Tone.DOUBTFUL,
    "degraded": Tone.DOUBTFUL,
    "failed": Tone.BAD,
}
_PATHS: Final = {
    "token": "by the token",
    "local": "by a local KEK",
    "local-uncached": "by a local KEK that the token decrypted",
}


def show(
    answer: Mapping[str, str],
    server: Mapping[str, Any] | None,
    found: Iterable[Finding],
) -> None:
    """Print the screen.

    Args:
        answer: What Status answered.
        server: The content of /status, or None.
        found: What must be mended.
    """
    for name, value in answer.items():
        tone = Tone.GOOD if value == "ok" else Tone.BAD
        _line(name, coloured(value, tone) if name == "healthz" else value)
    if server is None:
        return
    _show_state(server)
    for each in found:
        mark = coloured("!", Tone.DOUBTFUL)
        click.echo(f"{mark} {each.name}: {each.text}")
        if each.hint:
            click.echo(f"  hint: {with_config(each.hint)}")
    for block in (_keys(server), _asked(server), _token(server), _rest(server)):
        click.echo()
        for name, value in block:
            _line(name, value)


def _show_state(server: Mapping[str, Any]) -> None:
    state = server["state"]
    since = f"for {_ago(server['since'])}, since {server['since']}"
    _line("state", f"{coloured(state, _TONES[state])} {since}")
    if state != "ok":
        _line("cause", server.get("cause") or server["detail"])
        if server.get("cure"):
            _line("cure", with_config(server["cure"]))
        if state == "degraded":
            _line("meanwhile", "writes continue with a local KEK")


def _line(name: str, value: str) -> None:
    click.echo(f"{name}: {value}")


def _keys(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    others: Counter[str] = Counter()
    for key in server["keys"]:
        if key["key_id"] == server["key_id"]:
            if key["activation"]:
                yield "key age", spell(now() - key["activation"])
        elif key["state"] == "pending":
            wait = key.get("doubt") or "once keys.current names it"
            yield f"pending {key['key_id']}", _from(key["current_from"]) or wait
        else:
            others[key["state"]] += 1
    shown = ", ".join(f"{count} {state}" for state, count in sorted(others.items()))
    yield "other keys", shown or "none"


def _from(time: str | None) -> str:
    if time is None:
        return ""
    left = -seconds_since(time)
    return f"from {time}, in {spell(left)}" if left > 0 else f"from {time}"


def _asked(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    asked = server["last_status"]
    yield "last Status", f"{_ago(asked)} ago" if asked else NEVER_ASKED
    if (requests := server.get("requests")) is None:
        return
    whole = sum(requests["paths"].values())
    since = _ago(server["started"])
    yield "requests", f"{whole:,} answered, {requests['refused']:,} refused in {since}"
    for path, words in _PATHS.items():
        if count := requests["paths"].get(path):
            yield words, f"{100 * count / whole:.0f} % ({count:,})"


def _token(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    canary = server["canary"]
    if canary["last_success"]:
        yield "last canary", f"{_ago(canary['last_success'])} ago{_kind(canary)}"
    if canary["last_failure"]:
        when = _ago(canary["last_failure"])
        yield "last failure", f"{when} ago: {canary['failure']}"
    if fault := server["token"].get("last_fault"):
        yield "last failed request", f"{_ago(fault['time'])} ago: {fault['error']}"
    yield "workers", str(server["workers"]["ready"])
    sessions = server["sessions"]
    waiting = f", {sessions['waiting']} waiting" if sessions["waiting"] else ""
    yield "sessions", f"{sessions['idle']} idle of {sessions['held']}{waiting}"
    yield "breaker", server["breaker"]
    yield "pin", server["pin"]


def _kind(canary: Mapping[str, Any]) -> str:
    """Return what the canary was, unless it was one under the current key."""
    key = canary.get("health_key")
    if canary.get("kind") == "session" or (key and key["error"]):
        return ", by a session alone"
    return f", under the health key {key['label']!r}" if key else ""


def _rest(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config = server.get("config", {"in_force": True})
    yield "config", "in force" if config["in_force"] else "not in force"
    started = server.get("started")
    running = f", running for {_ago(started)}" if started else ""
    yield "server", f"hsm-kms {server['version']}{running}"


def _ago(time: str) -> str:
    return spell(seconds_since(time))
