"""Which clean-up steps of which modes run, with modes that only record their calls."""

from collections.abc import Callable, Collection, Iterator

import pytest

from svcproxy.backends.base import BackendError
from svcproxy.backends.mode_spec import ActiveMode, Cleanup, CleanupStep, ModeSpec, ReadyBackends
from svcproxy.cleanup import sweep
from svcproxy.config import Config
from svcproxy.model.names import IPFamily

IPSETS = ("one-a", "one-b", "two-a", "foreign")


class Modes:
    """Two modes, each with one step for rules, one for shared objects, and ipsets of its name."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.in_use: dict[str, tuple[str, ...]] = {}
        self.failing: set[str] = set()
        self.specs = [self._spec("one"), self._spec("two")]

    def _spec(self, name: str) -> ModeSpec:
        def rules(_: ActiveMode, family: IPFamily, keep: Collection[str]) -> Iterator[CleanupStep]:
            yield self._step(f"{name} rules {family} keep={','.join(keep)}", name)

        def shared(_: ActiveMode) -> Iterator[CleanupStep]:
            yield self._step(f"{name} shared", name)

        cleanup = Cleanup(
            rules, shared, lambda ipset: ipset.startswith(name), lambda: self.in_use.get(name, ())
        )

        def make(_: Config) -> ReadyBackends:
            raise NotImplementedError

        return ModeSpec(name=name, make=make, cleanup=lambda: cleanup)

    def _step(self, call: str, name: str) -> CleanupStep:
        def step() -> dict[str, int]:
            self.calls.append(call)
            if name in self.failing:
                raise BackendError(f"{name} failed")
            return {"removed": 1}

        return step


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> Modes:
    made = Modes()

    def destroy(is_stale: Callable[[str], bool]) -> int:
        stale = [name for name in IPSETS if is_stale(name)]
        made.calls.append(f"ipsets {','.join(stale)}")
        return len(stale)

    monkeypatch.setattr(sweep, "all_modes", lambda: iter(made.specs))
    monkeypatch.setattr(sweep, "destroy_ipsets", destroy)
    return made


def test_the_rules_of_all_modes_are_cleaned_up_for_a_family(modes: Modes) -> None:
    result = sweep.sweep_family(ActiveMode("one"), IPFamily.IPV4)
    assert modes.calls == ["one rules IPv4 keep=", "two rules IPv4 keep="]
    assert result.removed == {"removed": 2}


def test_a_failing_step_does_not_stop_the_others(modes: Modes) -> None:
    modes.failing = {"one"}
    result = sweep.sweep_family(ActiveMode("two"), IPFamily.IPV6)
    assert len(modes.calls) == 2
    assert result.removed == {"removed": 1}
    assert result.problems == ("one failed",)


def test_ipsets_are_destroyed_before_the_other_shared_objects(modes: Modes) -> None:
    result = sweep.sweep_shared(ActiveMode("one"))
    assert modes.calls == ["ipsets two-a", "one shared", "two shared"]
    assert result.removed == {"set_destroyed": 1, "removed": 2}


def test_chains_and_ipsets_in_use_stay_while_another_mode_is_active(modes: Modes) -> None:
    modes.in_use = {"two": ("KUBE-GUARD",)}
    sweep.sweep_family(ActiveMode("one"), IPFamily.IPV4)
    sweep.sweep_shared(ActiveMode("one"))
    assert modes.calls[:3] == [
        "one rules IPv4 keep=KUBE-GUARD",
        "two rules IPv4 keep=KUBE-GUARD",
        "ipsets ",
    ]


def test_without_an_active_mode_nothing_stays(modes: Modes) -> None:
    modes.in_use = {"two": ("KUBE-GUARD",)}
    result = sweep.sweep_all()
    assert modes.calls == [
        *(f"{name} rules {family} keep=" for family in IPFamily for name in ("one", "two")),
        "ipsets one-a,one-b,two-a",
        "one shared",
        "two shared",
    ]
    assert result.removed == {"removed": 6, "set_destroyed": 3}
