"""Count requests by method, code and path, and uses of each key.

No label comes from a request: a key_id counts only once its record is authenticated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from hsm_kms import clock
from hsm_kms.http import families
from hsm_kms.log import key_id_hash

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0),
)
_BOUNDS: Final = (*map(floatToGoString, _SECONDS), "+Inf")
_METHODS: Final = {
    "v2": ("v2.Status", "v2.Encrypt", "v2.Decrypt"),
    "v1": ("v1.Version", "v1.Encrypt", "v1.Decrypt"),
}
CODES: Final = (
    *("OK", "CANCELLED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"),
    *("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"),
)
"""The gRPC status codes of answers."""

_OF_DEKS: Final = frozenset({"Encrypt", "Decrypt"})
_DECRYPTS: Final = frozenset({"v1.Decrypt", "v2.Decrypt"})


class _Tally:
    """Count the requests of one method, code and path."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0


class RequestCounts:
    """Keep the counts of one server's requests.

    Args:
        apis: The APIs that are served, "v2" and "v1". Their counts have a sample for
            each method and code from the start, see `families.counts`.
    """

    def __init__(self, *apis: str) -> None:
        self._known = [
            (method, code) for api in apis for method in _METHODS[api] for code in CODES
        ]
        self._requests: defaultdict[tuple[str, str, str], _Tally] = defaultdict(_Tally)
        self._decrypts: Counter[str] = Counter()
        self._last_decrypt: dict[str, float] = {}

    def add(
        self, method: str, code: str, seconds: float, path: str, key_id: str
    ) -> None:
        """Count a request.

        Args:
            method: API and method, such as "v2.Encrypt".
            code: Name of the gRPC status code.
            seconds: Time from its arrival to its answer, in seconds.
            path: What encrypted or decrypted the DEK, see `wrapping.wrapper.Path`; ""
                if nothing did.
            key_id: The key of the request; not authenticated unless `code` is "OK".
        """
        # prometheus_client's own counters would take 3 us for each request.
        tally = self._requests[method, code, path]
        tally.buckets[bisect_left(_SECONDS, seconds)] += 1
        tally.seconds += seconds
        if code == "OK" and method in _DECRYPTS:
            self._decrypts[key_id] += 1
            self._last_decrypt[key_id] = clock.now()

    def by_path(self) -> dict[str, int]:
        """Return the DEKs that were encrypted and decrypted, by path."""
        paths: Counter[str] = Counter()
        for (_, code, path), tally in self._requests.items():
            if path and code == "OK":
                paths[path] += sum(tally.buckets)
        return dict(sorted(paths.items()))

    def refused(self) -> int:
        """Return how many Encrypts and Decrypts were not answered OK."""
        return sum(
            sum(tally.buckets)
            for (method, code, _), tally in self._requests.items()
            if code != "OK" and method.partition(".")[2] in _OF_DEKS
        )

    def collect(self) -> Iterable[Metric]:
        """Yield one metric family after the other."""
        yield from self._of_requests()
        yield families.counts(
            "hsm_kms_key_decrypts",
            "DEKs decrypted, by key.",
            "key_id_hash",
            {key_id_hash(key_id): n for key_id, n in self._decrypts.items()},
        )
        yield families.gauges(
            "hsm_kms_key_last_decrypt_timestamp_seconds",
            "When a DEK was last decrypted, by key.",
            "key_id_hash",
            {key_id_hash(key_id): at for key_id, at in self._last_decrypt.items()},
        )

    def _of_requests(self) -> Iterable[Metric]:
        answers: Counter[tuple[str, ...]] = Counter(dict.fromkeys(self._known, 0))
        operations: Counter[tuple[str, ...]] = Counter()
        times: defaultdict[str, list[_Tally]] = defaultdict(list)
        for (method, code, path), tally in self._requests.items():
            count = sum(tally.buckets)
            answers[method, code] += count
            if path and code == "OK":
                operations[method, path] += count
            times[method].append(tally)
        yield families.counter(
            "hsm_kms_requests", "KMS requests answered.", ("method", "code"), answers
        )
        yield families.counter(
            "hsm_kms_dek_operations",
            "DEKs encrypted and decrypted.",
            ("method", "path"),
            operations,
        )
        seconds = HistogramMetricFamily(
            "hsm_kms_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            labels=["method"],
        )
        for method, tallies in sorted(times.items()):
            each = map(sum, zip(*(tally.buckets for tally in tallies), strict=True))
            seconds.add_metric(
                [method],
                [(b, float(n)) for b, n in zip(_BOUNDS, accumulate(each), strict=True)],
                sum(tally.seconds for tally in tallies),
            )
        yield seconds
