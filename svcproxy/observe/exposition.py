"""How metrics are written for Prometheus: the text format or OpenMetrics, plain or compressed.

Nothing in the output is invented here: names, labels and values are those of the registry, but for
the ``_created`` series, which kube-proxy has none of and which double the counters.
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
# Compressing is ten times the work of sending on one machine, and most of the gain is in the
# first level: names repeat.
_GZIP_LEVEL = 1
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Exposition(NamedTuple):
    """A scrape: its content type, its content encoding (empty for none), its bytes."""

    content_type: str
    encoding: str
    body: bytes


def render(registry: Collector, accept: str = "", accept_encoding: str = "") -> Exposition:
    """Write what a registry holds in the format that a scraper asks for.

    Args:
        registry: what to write.
        accept: the ``Accept`` header. OpenMetrics 1.0 is for those who take no text format 0.0.4.
            Prometheus takes either and would rather have OpenMetrics, but that has to write
            ``le="1.0"``: before Prometheus 3 that is another series than kube-proxy's ``le="1"``,
            and kube-proxy knows the text format alone.
        accept_encoding: the ``Accept-Encoding`` header; gzip is given to those who ask for it.
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
    """A registry as seen without ``_created`` samples.

    The library can leave them out only for the whole process, by a global switch.
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
    """Write the text format 0.0.4.

    Figures look as kube-proxy's: the library would write ``le="1.0"`` where Go writes ``le="1"``.
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
            lines.append(f"{sample.name}{braces} {_figure(sample.value)}\n")
    return "".join(lines).encode()


def _figure(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value)).removesuffix(".0")
