"""A transaction names the generation that it is based on, so no plan overwrites foreign changes."""

from collections import Counter
from collections.abc import Sequence

import pytest

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables import table as table_module
from svcproxy.backends.nftables.client import StaleGenerationError
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.own_generations import OwnGenerations
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import text, u32, u64
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.core.nf_tables.transaction import Message, Plan, batch, messages
from tests.unit.nftables.fake_kernel import FakeKernel
from tests.unit.nftables.services import options, service_port

V4 = IPFamily.IPV4


class FakeClient:
    """A client of a fake kernel that counts what is sent."""

    port_id = 1
    namespace = 0

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.sent: Counter[str] = Counter()

    def generation(self) -> int:
        self.sent["generation"] += 1
        return self.kernel.generation

    def get(self, kind: int, attributes: bytes) -> bytes | None:
        assert (kind, attributes) == (nft.GET_TABLE, text(nft.TABLE_OF, TABLE))
        self.sent["table"] += 1
        found = self.kernel.tables.get(TABLE)
        return None if found is None else u64(4, found.handle) + u32(2, 0)

    def transact(self, todo: Sequence[Message], generation: int = 0) -> None:
        self.sent["transaction"] += 1
        if generation != self.kernel.generation:
            raise StaleGenerationError("nf_tables has changed meanwhile")
        self.kernel.transact(batch(todo, V4, generation))

    def take(self) -> dict[str, int]:
        """Return what was sent since the last call."""
        sent, self.sent = self.sent, Counter()
        return dict(sent)


class Scene:
    """A table with one Service port, as a new process reads and writes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel(V4)
        self.client = FakeClient(self.kernel)
        monkeypatch.setattr(table_module, "NftablesClient", lambda _family: self.client)
        own = OwnGenerations()
        monkeypatch.setattr(table_module, "own_generations", lambda _namespace: own)
        self.table = KernelTable(V4, TABLE)
        self.planner = Planner(options(V4))
        self.table._generation = self.kernel.generation
        self.table.commit(self.comparison(), {})
        self.client.take()

    def comparison(self) -> Plan:
        port = service_port(V4, (1, 3, 5))
        desired = Desired({port.name: port}, self.planner.settings)
        return self.planner.plan(desired, self.planner.settings, self.kernel.observed())

    def change(self, *numbers: int) -> None:
        port = service_port(V4, numbers)
        self.table.commit(self.planner.plan_changes({port.name: port}), {})

    def other_program(self, plan: Plan | None = None) -> None:
        """Let another program commit a transaction, an empty one by default."""
        self.kernel.transact(batch(messages(plan or Plan(), TABLE), V4))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_change_is_one_transaction(scene: Scene) -> None:
    for numbers in ((1, 3, 7), (1, 3, 9)):
        scene.change(*numbers)
        assert scene.client.take() == {"transaction": 1}


def test_own_generations_of_the_other_family_are_skipped(scene: Scene) -> None:
    for _ in range(3):
        scene.table._own.add(scene.kernel.generation + 1)
        scene.other_program()
    scene.change(1, 3, 7)
    assert scene.client.take() == {"transaction": 1}


def test_after_a_foreign_transaction_the_table_is_checked_before_the_retry(scene: Scene) -> None:
    scene.other_program()
    scene.change(1, 3, 7)
    assert scene.client.take() == {"transaction": 2, "generation": 1, "table": 1}
    scene.change(1, 3, 9)
    assert scene.client.take() == {"transaction": 1}
    assert not scene.table.is_unchanged()


def test_a_foreign_transaction_during_the_check_is_noticed(scene: Scene) -> None:
    """It comes between the check of the handle and the retry."""
    scene.other_program()
    get = scene.client.get

    def overtaken(kind: int, attributes: bytes) -> bytes | None:
        found = get(kind, attributes)
        scene.client.get = get  # type: ignore[method-assign]
        scene.other_program(Plan(delete_table=True))
        scene.other_program(Plan(make_table=True))
        return found

    scene.client.get = overtaken  # type: ignore[method-assign]
    with pytest.raises(StaleGenerationError):
        scene.change(1, 3, 7)
    assert not scene.kernel.table.sets, "nothing was written to the new table"


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_change_never_applies_to_another_table(scene: Scene, *, replaced: bool) -> None:
    scene.other_program(Plan(delete_table=True))
    if replaced:
        scene.other_program(Plan(make_table=True))
    before = scene.kernel.generation
    with pytest.raises(StaleGenerationError):
        scene.change(1, 3, 7)
    assert scene.kernel.generation == before


def test_a_stale_comparison_is_refused(scene: Scene) -> None:
    plan = scene.comparison()
    scene.other_program()
    with pytest.raises(StaleGenerationError):
        scene.table.commit(plan, {})


def test_a_comparison_at_any_generation_is_retried(scene: Scene) -> None:
    plan = scene.comparison()
    plan.generation = 0
    scene.other_program()
    scene.table.commit(plan, {})
    assert scene.client.take() == {"transaction": 1, "generation": 1}


def test_the_run_of_own_generations() -> None:
    own = OwnGenerations()
    for number in (5, 6, 8):
        own.add(number)
    assert own.latest(4) == 6
    assert own.latest(6) == 6
    assert own.made_all(4, 6)
    assert own.made_all(8, 8)
    assert not own.made_all(4, 8)
