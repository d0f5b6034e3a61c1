"""Parses /metrics for tests."""

import math
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Metrics(dict[str, list[Sample]]):
    """Samples by their full names (``..._total``, ``..._bucket``, ``..._count``)."""

    @classmethod
    def parse(cls, text: str) -> "Metrics":
        """Parse the text exposition format."""
        metrics = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                metrics.setdefault(sample.name, []).append(sample)
        return metrics

    def matching(self, name: str, **labels: str) -> Iterator[Sample]:
        """The samples of a name that have at least these labels."""
        for sample in self.get(name, []):
            if labels.items() <= sample.labels.items():
                yield sample

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples of a name that have at least these labels; 0 if none."""
        return sum(sample.value for sample in self.matching(name, **labels))

    def mean(self, name: str, **labels: str) -> float:
        """The mean of a histogram; NaN if it is empty."""
        number = self.value(f"{name}_count", **labels)
        return self.value(f"{name}_sum", **labels) / number if number else math.nan

    def quantile(self, name: str, q: float, **labels: str) -> float:
        """An upper bound of a quantile of a histogram: the upper end of its bucket."""
        buckets: dict[float, float] = {}
        for sample in self.matching(f"{name}_bucket", **labels):
            end = float(sample.labels["le"])
            buckets[end] = buckets.get(end, 0.0) + sample.value
        wanted = q * buckets.get(math.inf, 0.0)
        return min((end for end, n in buckets.items() if n >= wanted > 0), default=math.nan)
