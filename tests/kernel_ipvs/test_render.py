"""What ``svcproxy render`` prints for IPVS mode is loaded by the tools, and the daemon changes nothing."""

import subprocess
from collections.abc import Iterator

import pytest
from msgspec import structs

from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.explain.core.rendered_ipvs import rendered
from svcproxy.explain.core.rule_files import RuleFile, rule_files
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS
from tests.kernel_ipvs.test_backend import Bench
from tests.kernel_ipvs.test_printed import ports


@pytest.fixture
def bench(alone: NetNS, family: IPFamily) -> Iterator[Bench]:
    made = Bench(alone, family)
    yield made
    made.close()


def load(space: NetNS, file: RuleFile) -> None:
    command = file.command.replace("tables-restore", "tables-legacy-restore")
    done = space.call(
        lambda: subprocess.run(
            command.split(), input=file.text, capture_output=True, text=True, check=False
        )
    )
    assert not done.returncode, f"{command}: {done.stderr}\n{file.text}"


def test_the_tools_load_what_the_daemon_would_write(bench: Bench, family: IPFamily) -> None:
    bench.ports = {port.name: port for port in ports(family)}
    settings = IpvsSettings(**structs.asdict(bench.settings))
    files = rule_files(rendered(bench.ports, settings), family)
    assert [file.command.split()[0] for file in files] == [
        "ipset",
        "ipvsadm",
        "iptables-restore" if family is IPFamily.IPV4 else "ip6tables-restore",
        "ip",
    ]
    for file in files:
        load(bench.space, file)
    assert not bench.resync().operations
