"""The dashboard and the alerts use only series and labels that the daemon exports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from svcproxy.config import ProxyMode
from svcproxy.observe.exposition import render
from svcproxy.observe.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
# Labels that Prometheus adds to every series
TARGET_LABELS = {"instance", "job"}
_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "gauge": ("",),
}


class Query(NamedTuple):
    where: str
    expression: str
    legend: str = ""


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana/svcproxy.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text(encoding="utf-8"))[
        "groups"
    ]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> Iterator[Query]:
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield Query(panel["title"], expression, target["legendFormat"])
    for rule in rules():
        texts = json.dumps(rule["annotations"])
        labels = " ".join(f"{{{{{name}}}}}" for name in re.findall(r"\$labels\.(\w+)", texts))
        yield Query(rule["alert"], rule["expr"], labels)


QUERIES = list(queries())


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """The labels of all series of all modes, by name."""
    found: dict[str, set[str]] = {}
    for mode in ProxyMode:
        metrics = Metrics(mode)
        known = metrics.registry._names_to_collectors
        for family in text_string_to_metric_families(render(metrics.registry).body.decode()):
            for suffix in _SUFFIXES.get(family.type, ("",)):
                name = f"{family.name}{suffix}"
                labels = set(getattr(known.get(name), "_labelnames", ()))
                labels |= {n for s in family.samples if s.name == name for n in s.labels}
                found[name] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_every_queried_series_and_label_exists(query: Query, series: dict[str, set[str]]) -> None:
    asked = selectors(query.expression)
    assert asked
    known = set(TARGET_LABELS)
    for selector in asked:
        labels = series[str(selector.name)]
        known |= labels
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels | TARGET_LABELS
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", query.expression)
    assert {name.strip() for names in grouped for name in names.split(",")} <= known
    assert set(re.findall(r"\{\{\s*(\w+)\s*\}\}", query.legend)) <= known


def test_rule_sync_latency_comes_first() -> None:
    first_panel = next(panel for panel in panels() if "targets" in panel)
    for expression in (first_panel["targets"][0]["expr"], rules()[0]["expr"]):
        assert "kubeproxy_sync_proxy_rules_duration_seconds_bucket" in expression


def test_every_svcproxy_metric_is_on_the_dashboard(series: dict[str, set[str]]) -> None:
    shown = {str(s.name) for query in QUERIES for s in selectors(query.expression)}
    own = {re.sub(r"_(bucket|count|sum)$", "", name) for name in series if "svcproxy_" in name}
    assert own == {re.sub(r"_bucket$", "", name) for name in shown if "svcproxy_" in name}


def test_the_panels_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in panels()]
    assert len(numbers) == len(set(numbers))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_every_alert_is_complete_and_has_a_unit_test() -> None:
    tested = (DEPLOY / "prometheus/alerts_test.yaml").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert tested.count(rule["alert"]) >= 2  # once silent, once firing
