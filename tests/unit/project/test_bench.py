"""Test how the benches keep, show and publish what they measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import report, results
from bench.goals import GOALS, goals
from bench.plan import QUICK, WHOLE
from bench.publish import PAGE, illustrated, published
from bench.results import Results
from bench.tables import figure, number, ratio, table

ROOT = Path(__file__).parents[3]
MARKS = re.compile(r"<!-- bench: ([\w-]+) -->\n")


@pytest.fixture
def run():
    """Return a run in which two servers took their turns in three rounds."""
    made = Results(machine={"cores": "2"}, plan="whole", command="make bench")
    for mine, theirs in ((80, 100), (45, 50), (200, 400)):
        made.add("rates", case("token"), {"rate": mine, "p50_ms": 1.5})
        made.add("rates", case("empty"), {"rate": theirs})
    return made


def case(path):
    return {"path": path, "method": "Encrypt", "L": 0.0, "streams": 16}


def test_every_value_is_kept(run, tmp_path):
    """A run that was written is read as it was, with the values of each round."""
    run.write(tmp_path)
    again = results.read(tmp_path)

    assert run == again
    assert [80, 45, 200] == again.get("rates", **case("token")).values["rate"]


def test_figures(run):
    """A figure is the median with the spread; one that does not count is marked."""
    token = run.get("rates", **case("token"))

    assert "80 (45 to 200)" == figure(token, "rate")
    assert "1.50" == figure(token, "p50_ms")  # no round differs
    assert "-" == figure(token, "p99_ms")
    run.add("rates", case("token"), {"rate": 1}, "not all OK")
    assert figure(token, "rate").endswith(" **void**")


def test_ratios(run):
    """A ratio is the median of the ratios of each round, not that of the medians."""
    pair = (run.get("rates", **case("token")), run.get("rates", **case("empty")))

    assert "0.80" == ratio(*pair, "rate")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (2, "2")],
)
def test_numbers(value, shown):
    """A number is shown with the digits that count."""
    assert shown == number(value)


def test_tables():
    """Without rows there is no table."""
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |\n" == table(["a", "b"], [["1", "2"]])
    assert "" == table(["a", "b"], [])


def test_publishing_keeps_what_people_wrote(run):
    """Only what is between the markers of a section that was measured is replaced."""
    page = (
        "before\n<!-- bench: rates -->\nformer\n<!-- bench end -->\nbetween\n"
        "<!-- bench: cold -->\nkept\n<!-- bench end -->\nafter\n"
    )
    new = published(page, report.sections(run))

    assert new.startswith("before\n<!-- bench: rates -->\n\n| ")
    assert "former" not in new
    assert new.endswith(
        "between\n<!-- bench: cold -->\nkept\n<!-- bench end -->\nafter\n"
    )
    assert new == published(new, report.sections(run))


def test_goals(run):
    """What a run did not measure is no goal that it missed."""
    rows = goals(run).splitlines()[2:]
    verdicts = {row.split("|")[1].strip(): row.split("|")[4].strip() for row in rows}

    assert len(GOALS) == len(verdicts)
    assert "yes" == verdicts.pop("direct path, L = 0, 16 at once, of what is possible")
    assert {"-"} == {*verdicts.values()}
    assert "at least 0.85" == GOALS[0].wanted
    assert [False, True] == [GOALS[0].reached(each) for each in (0.84, 0.85)]
    assert [True, False] == [GOALS[2].reached(each) for each in (2, 2.1)]


def test_plots_are_in_their_sections(run):
    """A plot comes before the table of the same figures; others are left out."""
    drawn = ["performance-streams", "performance-keys"]  # no keys were measured
    sections = illustrated(report.sections(run), drawn)

    plot = "![Encrypt per second over requests at once](images/performance-streams.svg)"
    assert sections["rates"].startswith(f"{plot}\n\n| ")
    assert "keys" not in sections


def test_the_page_has_a_place_for_each_section():
    """Each marker of the page names a section, and each section has its place."""
    marked = MARKS.findall((ROOT / PAGE).read_text())

    assert sorted(marked) == sorted({*report.NAMES, report.PEERS} - {"all-times"})


def test_the_quick_form_measures_part_of_the_whole():
    """What the quick form measures, the whole form measures as well."""
    for each in ("latencies", "streams", "sessions", "keys", "clients", "secrets"):
        assert {*getattr(QUICK, each)} <= {*getattr(WHOLE, each)}, each
    assert QUICK.rounds > 1
