"""For any history of refusals, all other Services are applied, and the refused ones recover.

The real backend drives a fake kernel that refuses every new element of the Services that are
poisoned at that time.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.nftables.client import RefusedError, StaleGenerationError
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.datatypes import address_key, port_key, protocol_key
from svcproxy.netlink.core.nf_tables.protocol import NEW_ELEMENT
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.core.nf_tables.transaction import (
    Message,
    Plan,
    batch,
    element_keys,
    messages,
    split,
    stages,
)
from svcproxy.netlink.nf_tables import RefusedMessage
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sysctl import conntrack_is_liberal
from tests.examples import examples
from tests.property.machines import feed
from tests.property.strategies import NODE, SYNC
from tests.property.test_nftables_incremental import canonical, histories
from tests.unit.nftables.fake_kernel import FakeKernel, RefusedByFakeError

FAMILY = IPFamily.IPV4
OPTIONS = NftablesSettings(family=FAMILY, drop_invalid=not conntrack_is_liberal())


def frontend_keys(port: ServicePort) -> set[bytes]:
    protocol = protocol_key(port.name.protocol)
    return {
        (address_key(f.address) if f.address else b"") + protocol + port_key(f.port)
        for f in port.frontends
    }


class PickyTable:
    """The kernel's table; it refuses elements whose keys begin with a poisoned prefix."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.poison: set[bytes] = set()

    def _is_refused(self, message: Message) -> bool:
        return message.kind == NEW_ELEMENT and any(
            key.startswith(poison) for key in element_keys(message.body) for poison in self.poison
        )

    def commit(self, plan: Plan, _sets: Any) -> None:
        for number, stage in enumerate(stages(plan)):
            generation = self.kernel.generation if number else stage.generation
            if generation and generation != self.kernel.generation:
                raise StaleGenerationError("stale")
            todo = list(messages(stage, TABLE))
            refused = [RefusedMessage("poisoned", 12, m, 0) for m in todo if self._is_refused(m)]
            try:
                if not refused:
                    self.kernel.transact(batch(todo, FAMILY, generation))
                    continue
            except RefusedByFakeError as error:
                refused = [RefusedMessage(str(error), 17, None, 0)]
            failure = RefusedError(*refused)
            failure.partial = number > 0
            raise failure

    def refusals(self, plan: Plan, _error: Any, _sets: Any) -> list[tuple[Message, str]]:
        apart = (one for message in messages(plan, TABLE) for one in split(message))
        return [(one, "poisoned") for one in apart if self._is_refused(one)]

    def read(self) -> Any:
        return self.kernel.observed()


class Loop:
    """Calls a backend like the sync loop."""

    def __init__(self) -> None:
        self.state = DesiredState(FAMILY, NODE)
        self.kernel = FakeKernel(FAMILY)
        self.table = PickyTable(self.kernel)
        self.refused: set[ServicePortName] = set()
        self.restart()

    def restart(self) -> None:
        """Start a new process; the kernel stays as it is."""
        self.backend = NftablesBackend(FAMILY, OPTIONS)
        self.backend._kernel = self.table  # type: ignore[assignment]
        self.full = True

    def poison(self, services: set[str]) -> None:
        self.table.poison = {
            key
            for name, port in self.state.ports.items()
            if name.name in services
            for key in frontend_keys(port)
        }

    def sync(self, poisoned: set[str], *, full: bool = False) -> None:
        changes = self.state.checkout()
        self.poison(poisoned)
        plan: Plan | None = None
        if not (full or self.full):
            again = {name: self.state.ports.get(name) for name in self.refused}
            tried = Changes({**changes.ports, **again})
            plan = self.backend.plan_changes(tried, OPTIONS)
        if plan is None:
            plan = self.backend.plan(Desired(self.state.ports, OPTIONS), self.backend.read())
        outcome = self.backend.apply(plan)
        self.refused = set(outcome.refused)
        self.full = False
        assert {name.name for name in self.refused} <= poisoned
        self.assert_others_served()

    def assert_others_served(self) -> None:
        """The ports that are not refused have the same elements as in a fresh table."""
        wanted = {n: p for n, p in self.state.ports.items() if n not in self.refused}
        found, expected = canonical(self.kernel), fresh(wanted)
        keys = {key for port in wanted.values() for key in frontend_keys(port)}
        for name, elements in expected["elements"].items():
            assert elements.items() <= found["elements"].get(name, {}).items(), name
        for name, elements in found["elements"].items():
            owned = {k: v for k, v in elements.items() if any(map(k.startswith, keys))}
            if name not in {"hairpins", "cluster-addresses", "affinity-endpoints"}:
                assert owned.items() <= expected["elements"].get(name, {}).items(), name


def fresh(ports: dict[ServicePortName, ServicePort]) -> dict[str, Any]:
    kernel = FakeKernel(FAMILY)
    kernel.apply(Planner(OPTIONS).plan(Desired(ports, OPTIONS), OPTIONS, kernel.observed()))
    return canonical(kernel)


poisoned = st.sets(st.sampled_from([f"svc{n}" for n in range(6)]), max_size=3)


# Shrinking such long histories takes minutes and gains little.
@pytest.mark.timeout(400)
@settings(
    max_examples=examples(40),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(histories(), min_size=1, max_size=2), st.data())
def test_refused_ports_block_no_others_and_recover(
    sequences: list[list[Any]], data: st.DataObject
) -> None:
    loop = Loop()
    for event in (event for sequence in sequences for event in [*sequence, SYNC]):
        if event != SYNC:
            feed(loop.state, event)
            continue
        what = data.draw(st.sampled_from(["sync", "sync", "sync", "full", "restart"]))
        if what == "restart":
            loop.restart()
        loop.sync(data.draw(poisoned), full=what == "full")
    loop.sync(set())
    assert not loop.refused
    # The next full comparison removes inherited elements.
    loop.sync(set(), full=True)
    assert canonical(loop.kernel) == fresh(dict(loop.state.ports))
    assert not loop.backend.plan(Desired(loop.state.ports, OPTIONS), loop.backend.read())
