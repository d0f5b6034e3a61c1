"""The pure parts of the benchmarks: the population, figures and reports."""

import json
import os
import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from benchmarks import figures, guest, run, usage
from benchmarks.churn import Churn
from benchmarks.population import SERVICE_RANGE, Population, Shape, Size
from benchmarks.report import Machine, Report
from benchmarks.results import Change, Memory, Options, Result
from benchmarks.rule_growth import growth, planned_rules, rules_traversed
from benchmarks.subject import Subject
from benchmarks.targets import LARGE, target_table
from svcproxy.kube.core.decoding import decode_object
from svcproxy.kube.core.parse import parse_object
from svcproxy.model.names import Kind
from testbed.apiserver.server import FakeApiServer
from testbed.manifests import Object

HEADLESS = "service.kubernetes.io/headless"
PODS = ("10.244.1.2", "10.244.1.3", "10.244.1.4")


class TestRulesTraversed:
    def test_they_grow_much_slower_than_a_list(self) -> None:
        small, large = growth(Size(100, 5), Shape()), growth(Size(1600, 5), Shape())
        assert large.linear == 16 * small.linear
        assert large.traversed.from_pod < small.traversed.from_pod + 20
        assert (
            small.traversed.from_pod < small.traversed.from_outside < small.traversed.from_pod + 4
        )

    def test_every_service_is_reached_in_planned_rules(self) -> None:
        population = Population(Size(50, 3), PODS, Shape(large=1))
        rules = planned_rules(population)
        assert "KUBE-SERVICES" in rules.tables["nat"]["PREROUTING"][0]
        assert rules_traversed(rules, population).from_pod > 3


def is_headless(obj: Object) -> bool:
    """Whether service proxies ignore an object: a headless Service, or a slice with its label."""
    labels = obj["metadata"]["labels"]
    return obj["spec"]["clusterIP"] == "None" if "spec" in obj else HEADLESS in labels


def endpoints_of(server: FakeApiServer) -> dict[str, list[str]]:
    """Return the addresses in each slice of a server, by the slice's name."""
    slices = server.store.tables["EndpointSlice"].objects.values()
    return {s.key[1]: [e["addresses"][0] for e in s.obj["endpoints"]] for s in slices}


class TestPopulation:
    def test_it_has_the_requested_features(self) -> None:
        population = Population(Size(400, 5), PODS, Shape(node_ports=0.1, large=2, dialled=30))
        objects = list(population.objects())
        services = [o for o in objects if o["kind"] == "Service" and not is_headless(o)]
        assert len(services) == 400
        assert sum(map(is_headless, objects)) == 2 * 8
        assert Counter(s["spec"]["type"] for s in services) == {"ClusterIP": 360, "NodePort": 40}
        endpoints: Counter[str] = Counter()
        for obj in objects:
            if obj["kind"] == "EndpointSlice" and not is_headless(obj):
                assert len(obj["endpoints"]) <= 100
                owner = obj["metadata"]["labels"]["kubernetes.io/service-name"]
                endpoints[owner] += len(obj["endpoints"])
        # Dialled ones have no more than there are pods that answer; the probe has one.
        assert Counter(endpoints.values()) == {5: 367, 3: 30, 1000: 2, 1: 1}
        assert len(population.dialled) == 30

    def test_addresses_are_distinct_and_of_the_service_range(self) -> None:
        population = Population(Size(2000, 1), PODS)
        assert len(set(population.addresses)) == 2000
        assert all(ip_address(address) in SERVICE_RANGE for address in population.addresses)

    def test_it_is_the_same_every_time(self) -> None:
        first, second = (Population(Size(60, 2), PODS) for _ in range(2))
        assert list(first.objects()) == list(second.objects())

    def test_the_probe_comes_last_in_every_list(self) -> None:
        population = Population(Size(60, 2), PODS)
        keys = {
            (o["kind"], o["metadata"]["namespace"], o["metadata"]["name"])
            for o in population.objects()
        }
        for kind in ("Service", "EndpointSlice"):
            last = max(key for key in keys if key[0] == kind)
            assert "/".join(last[1:]).startswith(population.probe.name)

    def test_moving_the_probe_replaces_its_slice(self) -> None:
        population = Population(Size(60, 2), PODS)
        *_, present = population.objects()
        moved = population.probe_slice(PODS[1])
        assert moved["metadata"] == present["metadata"]
        assert [e["addresses"] for e in moved["endpoints"]] == [[PODS[1]]]

    def test_every_object_is_well_formed(self) -> None:
        for obj in Population(Size(60, 2), PODS).objects():
            parsed = parse_object(decode_object(Kind(obj["kind"]), json.dumps(obj).encode()))
            assert parsed or is_headless(obj)

    def test_churn_changes_one_endpoint_of_services_without_connections(self) -> None:
        population = Population(Size(60, 3), PODS, Shape(dialled=20))
        with FakeApiServer() as server:
            for obj in population.objects():
                server.put(obj)
            before = endpoints_of(server)
            Churn(server, population).storm(500)
            after = endpoints_of(server)
        changed = {name for name in before if before[name] != after[name]}
        dialled = {target.name.partition("/")[2] for target in population.dialled}
        assert len(changed) > 30
        assert not any(name.startswith((*tuple(dialled), "probe", "headless")) for name in changed)
        assert all(len(set(before[name]) - set(after[name])) == 1 for name in changed)

    @pytest.mark.parametrize("text", ["", "x5", "5x5", "100x0", "100x1001", "many"])
    def test_invalid_sizes(self, text: str) -> None:
        with pytest.raises(ValueError, match=r".*"):
            Size.parse(text)

    def test_sizes_read_as_they_are_written(self) -> None:
        assert str(Size.parse("1000x5")) == "1000x5"


class TestFigures:
    def test_quantiles_are_values_that_were_measured(self) -> None:
        values = [10.0, 1.0, 5.0, 3.0, 8.0, 2.0, 9.0, 4.0, 7.0, 6.0]
        assert [figures.quantile(values, share) for share in (0.1, 0.5, 0.9, 0.99, 1.0)] == [
            *(1.0, 5.0, 9.0, 10.0, 10.0)
        ]
        assert figures.median([3.0]) == 3.0

    @pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
    def test_quantiles_of_nothing(self, values: list[float], share: float) -> None:
        with pytest.raises(ValueError, match="quantiles"):
            figures.quantile(values, share)

    def test_figures_are_formatted(self) -> None:
        given = [0.000085, 0.0083, 0.8312, 7.456, 156.2]
        assert [figures.seconds(value) for value in given] == [
            *("85 µs", "8.3 ms", "831 ms", "7.46 s", "156 s")
        ]
        assert [figures.count(n) for n in (0, 5, 34.56, 60698)] == ["0", "5", "34.6", "60,698"]
        assert figures.megabytes(113_400_000) == "113 MB"

    def test_columns_line_up(self) -> None:
        assert figures.columns([["a", "b"], ["long", "22"]]) == ["a      b", "long  22"]


class TestUsage:
    def test_cpu_time_counts_children_and_survives_any_name(self) -> None:
        fields = ["S", *map(str, range(1, 50))]
        stat = f"12 (a) b) {' '.join(fields)}"
        assert usage.child_seconds(stat) * usage._TICKS == pytest.approx(13 + 14)

    def test_the_cpu_time_of_a_process_is_exact(self) -> None:
        begin = usage.usage(os.getpid()).cpu
        spent = time.process_time()
        while time.process_time() < spent + 0.013:
            pass
        assert 0.013 <= usage.usage(os.getpid()).cpu - begin < 0.1

    def test_sizes_come_in_kilobytes(self) -> None:
        text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
        assert usage.status_bytes(text, "VmHWM") == 2048 * 1024
        assert usage.status_bytes(text, "VmSwap") == 0


class TestCommands:
    def test_placeholders_are_filled_in_word_by_word(self) -> None:
        subject = Subject("/opt/kube-proxy --kubeconfig={kubeconfig} --x 'a b'")
        assert subject.name == "kube-proxy"
        words = subject.fill(kubeconfig="/tmp/with blank")
        assert words == ["/opt/kube-proxy", "--kubeconfig=/tmp/with blank", "--x", "a b"]

    def test_an_unknown_placeholder_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"'nodes'.*\{node\}"):
            Subject("proxy {nodes}").fill(node="node1")

    def test_the_command_line_is_read(self) -> None:
        arguments = run.parser().parse_args(["--sizes", "100x2, 1000x5", "--growth", ""])
        assert arguments.sizes == [Size(100, 2), Size(1000, 5)]
        assert arguments.growth == []
        assert set(arguments.modes) == {"nftables", "ipvs", "iptables"}

    def test_variants_are_those_of_iptables_mode(self) -> None:
        kernels = run._kernels(["nftables", "iptables"], "legacy")
        assert [(k.mode, k.variant) for k in kernels] == [
            ("nftables", "maps"),
            ("iptables", "legacy"),
        ]
        with pytest.raises(ValueError, match="there is no new"):
            run._kernels(["iptables"], "new")

    def test_the_guest_gets_all_arguments_but_its_own(self) -> None:
        given = ["--sizes", "1000x5", "--modes", "ipvs", "--output=x", "--changes", "9"]
        assert run._for_guest(given) == ["--changes", "9"]

    def test_a_guest_gets_sizes_that_its_processes_can_hold(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maps = tmp_path / "max_map_count"
        maps.write_text("65530\n")
        monkeypatch.setattr(guest, "_MAPS", maps)
        large, largest = Size(10_000, 5), Size(50_000, 2)
        assert guest.fits(large, 0)
        assert not guest.fits(large, Options().storm(large))
        assert not guest.fits(largest, 0)
        maps.write_text("1048576\n")
        assert guest.fits(large, Options().storm(large))
        assert guest.fits(largest, 0)

    def test_a_wrong_size_is_refused_with_a_hint(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run.parser().parse_args(["--sizes", "many"])
        assert "1000x5" in capsys.readouterr().err


class TestReport:
    machine = Machine("2026-11-20 10:00:00 UTC", 2, "CPU", "6.1", "3.11", ["iptables v1"], 0.1)

    def result(self) -> Result:
        return Result(
            "svcproxy",
            "iptables",
            "nft",
            Size(1000, 5),
            Shape(),
            Options(),
            cold_start=[1.2, 1.0, 1.1],
            changes=[Change(0.020, 0.01), Change(0.300, 0.02)],
            rules=6200,
        )

    def test_a_table_omits_rows_without_figures(self) -> None:
        text = Report(self.machine, [], [self.result()]).text()
        rows = {line[:40].strip(): line.split()[-2:] for line in text.splitlines() if line}
        assert rows["cold start: start to last Service's answe"[:40]] == ["1.10", "s"]
        assert rows["max"] == ["300", "ms"]
        assert "per Service" in rows
        assert not any(row.startswith("restart") for row in rows)
        assert "busy" not in text

    def test_the_file_holds_everything(self, tmp_path: Path) -> None:
        report = Report(self.machine, ["--changes=2"], [self.result()])
        path = report.write(tmp_path / "new")
        assert path.name == "bench-20261120100000.json"
        assert path.with_suffix(".txt").read_text() == report.text() + "\n"
        drawn = {plot.name.partition("-")[2] for plot in path.parent.glob("*.svg")}
        assert "20261120100000-change-by-size.svg" in drawn
        for plot in path.parent.glob("*.svg"):
            root = ET.parse(plot).getroot()
            assert root.tag.endswith("svg")
            assert "svcproxy iptables nft" in plot.read_text()
            loaded = [value for e in root.iter() for key, value in e.items() if "href" in key]
            assert not loaded, "a plot needs nothing from elsewhere"
        assert msgspec.json.decode(path.read_bytes(), type=Report) == report

    def test_a_target_is_met_or_missed_at_its_size_only(self) -> None:
        small = self.result()
        large = msgspec.structs.replace(small, size=LARGE)
        assert target_table([small]) == []
        head, *rows = target_table([small, large])
        column = head.index("iptables nft")
        cells = {row[0]: row[column] for row in rows}
        assert cells["cold start"] == "1.10 s (<= 10.00 s)"
        late = msgspec.structs.replace(large, changes=[Change(0.3, 0.01)])
        texts = [row[column] for row in target_table([late])[1:]]
        assert "MISSED 300 ms (<= 100 ms)" in texts

    def test_memory_growth_needs_all_the_changes(self) -> None:
        memory = Memory(100_000_000, 0, 0, 100_000_000, 101_000_000)
        title = "memory growth over 100,000 changes"
        for endurance, shown in ((100_000, True), (1000, False)):
            options = Options(endurance=endurance)
            result = msgspec.structs.replace(
                self.result(), size=LARGE, options=options, memory=memory
            )
            rows = {row[0]: row for row in target_table([result])}
            assert (title in rows) is shown
            assert not shown or "1.0% (<= 2.0%)" in rows[title]

    def test_a_busy_machine_is_mentioned(self) -> None:
        busy = msgspec.structs.replace(self.machine, load=1.5)
        assert "busy with something else (load 1.5" in Report(busy, []).text()


@pytest.mark.parametrize(
    ("spent", "wanted"),
    [
        pytest.param([0.0018, 0.0017, 0.0900], 0.0018, id="exact: a comparison among them"),
        pytest.param([0.0, 0.01, 0.0, 0.02, 0.0], 0.0025, id="ticks: as under churn"),
        pytest.param([], None, id="none"),
    ],
)
def test_the_cpu_time_of_a_change(spent: list[float], wanted: float | None) -> None:
    result = Result("svcproxy", "ipvs", "", LARGE, Shape(), Options())
    result.changes = [Change(0.01, cpu) for cpu in spent]
    result.churned_cpu = 0.125
    assert result.change_cpu == (None if wanted is None else pytest.approx(wanted))
