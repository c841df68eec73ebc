"""Test what `bench` says of figures, whatever the token was."""

from __future__ import annotations

import pytest

from hsm_kms.cli.bench.answers import judge, that_pay_off
from hsm_kms.cli.bench.load import Limits, Measured, Step
from hsm_kms.config.schema import Config
from hsm_kms.errors import TokenError

CONFIG = Config.model_validate(
    {
        "version": 1,
        "token": {
            "module": "/m.so",
            "token_label": "t",
            "pin_file": "/pin",
            "workers": 2,
            "sessions_per_worker": 2,
        },
    }
)


def step(sessions, rate, *, ms=1.0, limited=False):
    """One second with this rate, in which each call took the same time."""
    times = [ms] * (rate // 2)
    return Step(sessions, 1.0, times, [*times], limited=limited)


def said(*steps, trouble=None, secrets=1000):
    """Return outcome and text of each answer by its id, the last one of several."""
    report = judge(CONFIG, Measured([*steps], "aes", trouble), secrets)
    return {each.id: (str(each.outcome), each.text) for each in report.findings}


# rates by number of sessions · the number that pays off
PAYING = {
    "a token that does one call at a time": ({1: 100, 2: 105, 4: 110}, 1),
    "a token that does two": ({1: 100, 2: 190, 4: 200}, 2),
    "a token that does all": ({1: 100, 2: 200, 4: 400, 8: 800}, 8),
    "one session": ({1: 100}, 1),
}


@pytest.mark.parametrize("name", PAYING)
def test_sessions_that_pay_off(name):
    """More sessions pay off as long as they make the token a fifth faster."""
    rates, wanted = PAYING[name]

    assert wanted == that_pay_off([step(*each) for each in rates.items()]).sessions


# how long a call takes · outcome · how the answer begins
LATENCIES = {
    "as recommended": (4.0, "ok", "fast enough for any cluster with KMS v2"),
    "slower": (40.0, "warning", "fast enough, but slower than Kubernetes recommends"),
    "near the timeout": (1100.0, "failed", "too slow: Encrypt 1100.0 ms"),
}


@pytest.mark.parametrize("name", LATENCIES)
def test_latency(name):
    """A token is too slow if calls come near token.call_timeout."""
    ms, outcome, words = LATENCIES[name]
    found, text = said(step(1, 10, ms=ms))["latency"]

    assert outcome == found
    assert text.startswith(words)


# steps · outcome · what is said
SESSIONS = {
    "enough are configured": (
        [step(1, 100), step(2, 200), step(4, 210)],
        "ok",
        "2 sessions made 200 calls a second, and more sessions hardly more",
    ),
    "too few are configured": (
        [step(1, 100), step(2, 200), step(4, 400), step(8, 800), step(16, 810)],
        "warning",
        "8 sessions made 800 calls a second",
    ),
    "the limit was reached": (
        [step(1, 100, limited=True)],
        "ok",
        "which is the limit of --rate; more were not tried",
    ),
    "there were no more": ([step(1, 100), step(2, 200)], "ok", "more were not tried"),
}


@pytest.mark.parametrize("name", SESSIONS)
def test_sessions(name):
    """The number that pays off is compared with the configuration."""
    steps, outcome, words = SESSIONS[name]
    found, text = said(*steps)["sessions"]

    assert outcome == found
    assert words in text
    assert "the configuration opens 4 sessions" in text


# ms · Secrets · what the last line about the API server's start says
STARTS = {
    "fast": (0.5, 1000, "500.0 ms of the token for 1,000 Secrets"),
    "seconds": (5, 1000, "5.0 s of the token for 1,000 Secrets"),
    "minutes": (5, 100_000, "8.3 min of the token for 100,000 Secrets"),
    "hours": (50, 1_000_000, "13.9 h of the token for 1,000,000 Secrets"),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_of_the_api_server(name):
    """The cost of a start is the number of Secrets times one decryption."""
    ms, secrets, words = STARTS[name]

    assert words in said(step(1, 10, ms=ms), secrets=secrets)["restart"][1]


def test_trouble():
    """What was measured before an error is answered as well, if anything was."""
    trouble = TokenError("CKR_DEVICE_ERROR", hint="look")

    assert {"trouble", "latency", "sessions", "restart"} == {
        *said(step(1, 100), trouble=trouble)
    }
    assert {"trouble": "failed", "latency": "skipped"}.items() <= {
        name: outcome for name, (outcome, _) in said(trouble=trouble).items()
    }.items()


@pytest.mark.parametrize(
    ("sessions", "steps"), [(1, (1,)), (3, (1, 2, 3)), (8, (1, 2, 4, 8))]
)
def test_steps(sessions, steps):
    """Sessions are doubled, up to the number that was given."""
    limits = Limits(
        sessions=sessions, rate=1, seconds=1, call_timeout=1, start_timeout=1
    )

    assert steps == limits.steps
