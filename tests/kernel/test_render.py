"""What ``svcproxy render`` prints is what the kernel's tools load and what the daemon would write."""

import contextlib
import subprocess

import pytest

from svcproxy.backends.base import Desired
from svcproxy.backends.xtables.commands import Variant
from svcproxy.explain.core.rendered_iptables import rendered as iptables_rules
from svcproxy.explain.core.rendered_nftables import rendered as nftables_rules
from svcproxy.explain.core.rule_files import RuleFile, rule_files
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS
from tests.kernel.benches import Bench
from tests.kernel.test_nft_printer import comparable, settings_with
from tests.kernel.test_nftables_table import TABLES, Programmed, one_of_each
from tests.unit.nftables.services import PODS, options

pytestmark = pytest.mark.kernel


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


def load(space: NetNS, file: RuleFile, variant: str = "") -> None:
    command = file.command
    if variant:
        command = command.replace("tables-restore", f"tables-{variant}-restore")
    done = space.call(
        lambda: subprocess.run(
            command.split(), input=file.text, capture_output=True, text=True, check=False
        )
    )
    assert not done.returncode, f"{command}: {done.stderr}\n{file.text}"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_iptables_restore_loads_what_the_daemon_would_write(
    space: NetNS, family: IPFamily, variant: str
) -> None:
    bench = Bench(space, Variant(variant), family)
    bench.ports = {port.name: port for port in one_of_each(family)}
    settings = bench.backend._extend(bench.settings)
    files = rule_files(iptables_rules(bench.ports, settings), family)
    assert [file.tool.removeprefix("ip6").removeprefix("ip") for file in files] == [
        "set",
        "tables-restore",
    ]
    for file in files:
        load(space, file, variant)
    assert not bench.compare().operations


def test_nft_loads_what_the_daemon_would_write(space: NetNS, family: IPFamily) -> None:
    """Except rules of session affinity, for which nft has no syntax."""
    settings = options(family)
    ports = {port.name: port for port in one_of_each(family)}
    (file,) = rule_files(nftables_rules(ports, settings_with(settings, (PODS[family],))), family)
    load(space, file)
    command = ["nft", "list", "table", TABLES[family], "svcproxy"]
    loaded = space.run(*command).stdout
    space.run("nft", "delete", "table", TABLES[family], "svcproxy")
    with contextlib.closing(Programmed(space, family)) as made:
        backend = made.backend
        backend.apply(backend.plan(Desired(ports, settings, (PODS[family],)), backend.read()))
        listed = made.listed()
    for name in ("all", "local"):
        for word in ("chain", "jump", "goto"):
            loaded = loaded.replace(f"{word} {name}_", f"{word} {name}")
    assert comparable(loaded) == comparable(listed)
    assert "# " in file.text
