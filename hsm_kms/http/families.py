"""Build the metric families of prometheus_client, each in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def one_of(name: str, text: str, states: Sequence[str], present: str) -> Metric:
    """Return a gauge with a sample for each state: 1 for the present one, else 0."""
    return gauges(name, text, "state", {each: each == present for each in states})


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a gauge with a sample for each value, in their order."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], float(value))
    return family


def number(name: str, text: str, value: float) -> Metric:
    """Return a gauge with one sample and no label."""
    return GaugeMetricFamily(name, text, value=float(value))


def info(name: str, text: str, **labels: str) -> Metric:
    """Return a gauge whose labels hold the information; its value is 1."""
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def infos(
    name: str, text: str, labels: Sequence[str], rows: Sequence[Sequence[str]]
) -> Metric:
    """Return a gauge with a sample of value 1 for each row of labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for each in rows:
        family.add_metric(each, 1.0)
    return family


def moment(name: str, text: str, when: float | None) -> Iterable[Metric]:
    """Yield a gauge with a time, in seconds since the Unix epoch; nothing for None."""
    if when is not None:
        yield number(name, text, when)


def total(name: str, text: str, value: float) -> Metric:
    """Return a counter with one sample and no label."""
    return CounterMetricFamily(name, text, value=float(value))


def counts(
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
    known: Iterable[str] = (),
) -> Metric:
    """Return a counter with one label, and a sample for each value.

    Args:
        name: Name of the metric.
        text: Its help text.
        label: Name of the label.
        values: Count by value of the label.
        known: Values of the label that have a sample from the start: `increase` of
            Prometheus does not see a sample that is 1 when it first appears.
    """
    whole = dict.fromkeys(known, 0.0) | dict(values)
    return counter(name, text, (label,), {(each,): n for each, n in whole.items()})


def counter(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    """Return a counter with several labels, and a sample for each value."""
    family = CounterMetricFamily(name, text, labels=labels)
    for each, count in sorted(values.items()):
        family.add_metric(each, float(count))
    return family
