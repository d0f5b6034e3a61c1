"""The backend with a table that keeps refusing transactions."""

import math
from typing import Any

import pytest

from svcproxy.backends.base import BackendError, Desired
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.nftables.client import RefusedError
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
    """A table that refuses ``times`` transactions because of the message ``wrong``."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(FAMILY)
        self.wrong: Message | None = None
        self.times = math.inf
        self.transactions = 0

    def commit(self, plan: Plan, _sets: Any) -> None:
        self.transactions += 1
        assert self.transactions < MOST_TRANSACTIONS, "the backend does not give up"
        if self.wrong is not None and self.times:
            self.times -= 1
            raise RefusedError(RefusedMessage("wrong", 2, self.wrong, 0))
        self.kernel.apply(plan)

    def refusals(self, _plan: Any, error: RefusedError, _sets: Any) -> list[tuple[Message, str]]:
        return [(r.message, r.reason) for r in error.refusals if r.message is not None]

    def read(self) -> Any:
        return self.kernel.observed()


def started(table: RefusingTable) -> NftablesBackend:
    """Return the backend of a new process; the table stays as it is."""
    backend = NftablesBackend(FAMILY, OPTIONS)
    backend._kernel = table  # type: ignore[assignment]
    return backend


def hairpin_of(port: ServicePort) -> Message:
    """Return a message about the hairpin of a Service port's first endpoint."""
    key = hairpin_key(port.cluster_endpoints[0].address)
    return next(iter(messages(Plan(add={table_sets.HAIRPINS: {key: b""}}), TABLE)))


def test_a_port_whose_accepted_state_is_refused_fails_the_sync() -> None:
    """Its fallback is a change as well, because another Service takes over its address."""
    table = RefusingTable()
    backend = started(table)
    former = service_port(FAMILY, (1, 2), name="former", vip="10.97.0.1")
    changed = service_port(FAMILY, (1, 2, 3), name="former", vip="10.97.0.1")
    backend.apply(backend.plan(Desired({former.name: former}, OPTIONS), backend.read()))
    backend._refused = frozenset({former.name})
    successor = service_port(FAMILY, (4,), name="successor", vip="10.97.0.1")
    table.wrong = hairpin_of(former)
    plan = backend.plan_changes(Changes({former.name: changed, successor.name: successor}), OPTIONS)
    assert plan
    with pytest.raises(BackendError, match="wrong"):
        backend.apply(plan)


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "deleted"])
def test_changes_of_a_port_with_inherited_elements_need_a_resync(*, gone: bool) -> None:
    """Elements of a previous Service at the same address must not outlive the new one."""
    table = RefusingTable()
    former = service_port(FAMILY, (1,), name="former", vip="10.97.0.1", local=True, external=True)
    other = service_port(FAMILY, (3,), name="other", vip="10.97.0.2")
    backend = started(table)
    backend.apply(backend.plan(Desired({former.name: former}, OPTIONS), backend.read()))

    successor = service_port(FAMILY, (2,), name="successor", vip="10.97.0.1")
    table.wrong, table.times = hairpin_of(successor), 1
    backend = started(table)
    outcome = backend.apply(
        backend.plan(Desired({successor.name: successor}, OPTIONS), backend.read())
    )
    assert outcome.refused == {successor.name: "wrong"}
    assert backend.plan_changes(Changes({other.name: other}), OPTIONS) is not None
    wanted = {} if gone else {successor.name: successor}
    assert (
        backend.plan_changes(Changes({successor.name: wanted.get(successor.name)}), OPTIONS) is None
    )
    backend.apply(backend.plan(Desired(wanted, OPTIONS), backend.read()))
    assert canonical(table.kernel) == fresh(wanted)
