"""What the backend does with a table that goes on refusing."""

import math
from typing import Any

import pytest

from svcproxy.backends.base import BackendError, Desired
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.nftables.connection import RefusedError
from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import hairpin_key
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.core.nf_tables.transaction import Message, Plan, messages
from svcproxy.netlink.nf_tables import RefusedMessage
from svcproxy.state.desired import Changes
from svcproxy.sysctl import conntrack_is_liberal
from tests.property.test_nftables_incremental import canonical
from tests.property.test_nftables_refused import fresh
from tests.unit.nftables.fake_kernel import FakeKernel
from tests.unit.nftables.services import service_port

FAMILY = IPFamily.IPV4
OPTIONS = NftablesSettings(family=FAMILY, drop_invalid=not conntrack_is_liberal())
MOST_TRANSACTIONS = 50


class RefusingTable:
    """A table that refuses so many transactions, and blames the same element each time."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(FAMILY)
        self.wrong: Message | None = None
        self.times = math.inf
        self.transactions = 0

    def commit(self, plan: Plan, _sets: Any) -> None:
        self.transactions += 1
        assert self.transactions < MOST_TRANSACTIONS, "it does not give up"
        if self.wrong is not None and self.times:
            self.times -= 1
            raise RefusedError(RefusedMessage("wrong", 2, self.wrong, 0))
        self.kernel.apply(plan)

    def refusals(self, _plan: Any, error: RefusedError, _sets: Any) -> list[tuple[Message, str]]:
        return [(r.message, r.reason) for r in error.refusals if r.message is not None]

    def read(self) -> Any:
        return self.kernel.observed()


def started(table: RefusingTable) -> NftablesBackend:
    """A new process, with the table as it is."""
    backend = NftablesBackend(FAMILY, OPTIONS)
    backend._kernel = table  # type: ignore[assignment]
    return backend


def hairpin_of(port: ServicePort) -> Message:
    """A message about an element that belongs to a Service port for its endpoints' sake."""
    key = hairpin_key(port.cluster_endpoints[0].address)
    return next(iter(messages(Plan(add={table_sets.HAIRPINS: {key: b""}}), TABLE)))


def test_a_port_that_is_refused_even_as_it_was_fails_the_sync() -> None:
    """Leaving it as it was is a change as well where another Service takes over its address."""
    table = RefusingTable()
    backend = started(table)
    former = service_port(FAMILY, (1, 2), name="former", vip="10.97.0.1")
    changed = service_port(FAMILY, (1, 2, 3), name="former", vip="10.97.0.1")
    backend.apply(backend.plan(Desired({former.name: former}, OPTIONS), backend.read()))
    backend._refused = frozenset({former.name})
    heir = service_port(FAMILY, (4,), name="heir", vip="10.97.0.1")
    table.wrong = hairpin_of(former)
    plan = backend.plan_changes(Changes({former.name: changed, heir.name: heir}), OPTIONS)
    assert plan
    with pytest.raises(BackendError, match="wrong"):
        backend.apply(plan)


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "deleted"])
def test_a_port_of_which_unknown_elements_were_kept_is_compared(*, gone: bool) -> None:
    """Elements of a former Service at the same address must not stay beside those of the new one."""
    table = RefusingTable()
    former = service_port(FAMILY, (1,), name="former", vip="10.97.0.1", local=True, external=True)
    other = service_port(FAMILY, (3,), name="other", vip="10.97.0.2")
    backend = started(table)
    backend.apply(backend.plan(Desired({former.name: former}, OPTIONS), backend.read()))

    heir = service_port(FAMILY, (2,), name="heir", vip="10.97.0.1")
    table.wrong, table.times = hairpin_of(heir), 1
    backend = started(table)
    outcome = backend.apply(backend.plan(Desired({heir.name: heir}, OPTIONS), backend.read()))
    assert outcome.refused == {heir.name: "wrong"}
    assert backend.plan_changes(Changes({other.name: other}), OPTIONS) is not None
    wanted = {} if gone else {heir.name: heir}
    assert backend.plan_changes(Changes({heir.name: wanted.get(heir.name)}), OPTIONS) is None
    backend.apply(backend.plan(Desired(wanted, OPTIONS), backend.read()))
    assert canonical(table.kernel) == fresh(wanted)
