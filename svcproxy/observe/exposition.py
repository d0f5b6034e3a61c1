"""Encodes metrics for Prometheus: the text format or OpenMetrics, optionally gzip-compressed.

Names, labels and values are those of the registry. Only the ``_created`` series are left out:
kube-proxy has none, and they would double the number of counter series.
"""

import gzip
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.registry import Collector

from svcproxy.observe.core.negotiation import accepted

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# Compression costs ten times the CPU time of sending within a machine. Metric names repeat, so
# level 1 achieves most of the reduction.
_GZIP_LEVEL = 1
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Exposition(NamedTuple):
    """The answer to a scrape: content type, content encoding (empty for none), and body."""

    content_type: str
    encoding: str
    body: bytes


def render(registry: Collector, accept: str = "", accept_encoding: str = "") -> Exposition:
    """Encode the metrics of a registry in the format that the scraper accepts.

    Args:
        registry: the metrics.
        accept: the ``Accept`` header. OpenMetrics 1.0 is used only if text format 0.0.4 is not
            accepted. Prometheus accepts both and prefers OpenMetrics, but OpenMetrics requires
            ``le="1.0"``, which before Prometheus 3 is a different series from ``le="1"`` of
            kube-proxy, which serves the text format only.
        accept_encoding: the ``Accept-Encoding`` header; gzip is used if accepted.
    """
    encode, content_type = _format(accept)
    body = encode(_WithoutCreated(registry))
    if any(coding.name == "gzip" for coding in accepted(accept_encoding)):
        return Exposition(content_type, "gzip", gzip.compress(body, _GZIP_LEVEL, mtime=0))
    return Exposition(content_type, "", body)


def _format(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    choices = [(media.name, media.parameters.get("version", "")) for media in accepted(accept)]
    modern = any(
        name == "application/openmetrics-text" and version in {"", "1.0.0"}
        for name, version in choices
    )
    plain = any(
        name in {"text/plain", "text/*", "*/*"} and version in {"", "0.0.4"}
        for name, version in choices
    )
    return (openmetrics, _OPENMETRICS) if modern and not plain else (_text, _TEXT)


class _WithoutCreated:
    """A view of a registry without ``_created`` samples.

    The library can disable them only for the whole process, by a global switch.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the registry's metrics, each without its ``_created`` samples."""
        for metric in self._registry.collect():
            created = f"{metric.name}_created"
            metric.samples = [sample for sample in metric.samples if sample.name != created]
            yield metric


def _text(registry: Collector) -> bytes:
    """Encode as text format 0.0.4.

    Numbers are formatted as by Go: the library would write ``le="1.0"`` instead of ``le="1"``.
    """
    lines: list[str] = []
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        kind = "untyped" if metric.type == "unknown" else metric.type
        lines.append(f"# HELP {name} {metric.documentation.translate(_HELP_ESCAPES)}\n")
        lines.append(f"# TYPE {name} {kind}\n")
        for sample in metric.samples:
            labels = ",".join(
                f'{key}="{value.removesuffix(".0") if key == "le" else value.translate(_ESCAPES)}"'
                for key, value in sorted(sample.labels.items())
            )
            braces = f"{{{labels}}}" if labels else ""
            lines.append(f"{sample.name}{braces} {_number(sample.value)}\n")
    return "".join(lines).encode()


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value)).removesuffix(".0")
