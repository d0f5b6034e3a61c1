"""What each mode declares about itself, and that the registry is complete."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.registry import Collector

from svcproxy.backends.mode_spec import ModeSpec
from svcproxy.config import ProxyMode
from svcproxy.modes import all_modes, mode_spec
from svcproxy.observe.metrics import Metrics

BACKENDS = Path(__file__).parents[2] / "svcproxy/backends"
MODES = {mode.name: mode for mode in all_modes()}


def exported(shown: frozenset[str] | None) -> set[str]:
    collectors: dict[str, Collector] = Metrics("any", shown).registry._names_to_collectors
    return {name.removeprefix("kubeproxy_") for name in collectors}


def test_each_folder_with_a_mode_is_registered() -> None:
    assert {path.parent.name for path in BACKENDS.glob("*/mode.py")} == set(MODES)


def test_each_proxy_mode_is_registered() -> None:
    assert set(ProxyMode) <= set(MODES)


@pytest.mark.parametrize("spec", MODES.values(), ids=list(MODES))
def test_a_mode_shows_the_metrics_that_it_declares(spec: ModeSpec) -> None:
    assert spec.metrics <= exported(spec.metrics)
    assert not spec.metrics & exported(frozenset())


def test_each_metric_of_some_modes_only_is_declared_by_one() -> None:
    some_modes = exported(None) - exported(frozenset())
    declared = exported(frozenset.union(*(spec.metrics for spec in MODES.values())))
    assert some_modes <= declared


@pytest.mark.parametrize("name", MODES)
def test_a_mode_loads_no_module_of_another(name: str) -> None:
    script = f"import sys; from svcproxy.modes import mode_spec; mode_spec({name!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    loaded = {m.split(".")[2] for m in done.stdout.split() if m.startswith("svcproxy.backends.")}
    assert not loaded & (set(MODES) - {name})
    assert f"svcproxy.backends.{name}.backend" not in done.stdout.split()


def test_only_nftables_mode_follows_service_cidrs_and_only_ipvs_reads_annotations() -> None:
    differing = {
        spec.name: (len(spec.kinds), bool(spec.annotations)) for spec in map(mode_spec, ProxyMode)
    }
    assert differing == {"iptables": (3, False), "ipvs": (3, True), "nftables": (4, False)}
