"""The nf_tables generation shows whether a resync can be skipped."""

from collections.abc import Iterator

import pytest

from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.xtables.change_tracker import GenerationTracker
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.transaction import Plan
from svcproxy.netlink.generation import generation, has_tables
from testbed import netns
from testbed.netns import NetNS

pytestmark = pytest.mark.kernel


class Namespace:
    """A network namespace with a change tracker, and another process that changes nf_tables."""

    def __init__(self, space: NetNS) -> None:
        self.space = space
        self.mark = GenerationTracker()
        self._tables = 0

    def commit(self) -> None:
        self._tables += 1
        self.space.run("nft", "add", "table", "ip", f"table{self._tables}")

    def reading(self) -> None:
        self.space.call(self.mark.before_read)

    def write(self, commits: int, external: int = 0) -> None:
        self.space.call(self.mark.before_write)
        for _ in range(commits + external):
            self.commit()
        self.space.call(lambda: self.mark.after_write(commits))

    @property
    def untouched(self) -> bool:
        return self.space.call(self.mark.is_unchanged)


@pytest.fixture
def here() -> Iterator[Namespace]:
    space = NetNS(f"svp-gen-{id(object())}")
    netns.ip_batch([f"netns add {space.name}"])
    yield Namespace(space)
    netns.remove([space.name])


def test_every_commit_counts(here: Namespace) -> None:
    first = here.space.call(generation)
    here.commit()
    assert first is not None
    assert here.space.call(generation) == first + 1


def test_nothing_is_trusted_before_the_first_read(here: Namespace) -> None:
    assert not here.untouched
    here.write(1)
    assert not here.untouched


def test_own_changes_are_trusted_and_external_ones_detected(here: Namespace) -> None:
    here.reading()
    assert here.untouched
    here.write(2)
    assert here.untouched
    here.commit()
    assert not here.untouched


def test_an_external_change_is_not_hidden_by_ours(here: Namespace) -> None:
    here.reading()
    here.write(1, external=1)
    assert not here.untouched, "one commit too many"
    here.reading()
    here.commit()
    here.write(1)
    assert not here.untouched, "a change between reading and writing"


def test_changes_of_own_tables_are_no_changes_to_those_of_iptables(here: Namespace) -> None:
    here.reading()
    table = here.space.call(lambda: KernelTable(IPFamily.IPV6, "svcproxy-other"))

    def change(plan: Plan) -> None:
        here.space.call(lambda: table.commit(plan, {}))

    change(Plan(make_table=True, compared=True))
    assert here.untouched
    here.space.call(here.mark.before_write)
    change(Plan(delete_table=True, compared=True))
    here.commit()
    here.space.call(lambda: here.mark.after_write(1))
    assert here.untouched
    change(Plan(make_table=True, compared=True))
    here.commit()
    change(Plan(delete_table=True, compared=True))
    assert not here.untouched
    table.close()


@pytest.mark.parametrize("family", IPFamily)
def test_probing_for_tables_changes_nothing(here: Namespace, family: IPFamily) -> None:
    space = here.space
    before = space.call(generation)
    assert space.call(lambda: has_tables(family))
    assert space.call(generation) == before
    assert space.run("nft", "list", "ruleset").stdout == ""
