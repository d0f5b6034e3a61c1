"""One pass of the clean-up over all modes; a step that fails does not stop the others."""

from collections import Counter
from collections.abc import Iterable, Mapping

from svcproxy.backends.base import BackendError
from svcproxy.backends.mode_spec import ActiveMode, CleanupStep
from svcproxy.cleanup.ipsets import destroy_ipsets
from svcproxy.cleanup.result import CleanupResult
from svcproxy.model.names import IPFamily
from svcproxy.modes import all_modes


def sweep_family(active: ActiveMode, family: IPFamily) -> CleanupResult:
    """Remove stale rules of one family. Rules are removed first, because they carry traffic."""
    keep = () if active.mode is None else _chains_in_use(active)
    return _run(step for mode in all_modes() for step in mode.cleanup().rules(active, family, keep))


def sweep_shared(active: ActiveMode) -> CleanupResult:
    """Remove stale objects of both families; the rules that used them must be removed already."""
    return _run(
        [
            lambda: _destroy_ipsets(active),
            *(step for mode in all_modes() for step in mode.cleanup().shared(active)),
        ]
    )


def sweep_all(keep: tuple[str, ...] = ()) -> CleanupResult:
    """Remove all kernel objects of every mode of svcproxy and of kube-proxy, in both families.

    Args:
        keep: CIDRs whose virtual servers stay (``--ipvs-exclude-cidrs``).
    """
    none_active = ActiveMode(keep=keep)
    results = [*(sweep_family(none_active, family) for family in IPFamily)]
    results.append(sweep_shared(none_active))
    removed: Counter[str] = Counter()
    for result in results:
        removed.update(result.removed)
    problems = tuple(problem for result in results for problem in result.problems)
    return CleanupResult(dict(removed), problems)


def _run(steps: Iterable[CleanupStep]) -> CleanupResult:
    removed: Counter[str] = Counter()
    problems: list[str] = []
    for step in steps:
        try:
            removed.update(step())
        except BackendError as error:
            problems.append(str(error))
    return CleanupResult(dict(removed), tuple(problems))


def _chains_in_use(active: ActiveMode) -> tuple[str, ...]:
    """Return the chains that connections of inactive modes still depend on."""
    inactive = (mode for mode in all_modes() if mode.name != active.mode)
    return tuple(chain for mode in inactive for chain in mode.cleanup().chains_in_use())


def _destroy_ipsets(active: ActiveMode) -> Mapping[str, int]:
    stale = [
        mode.cleanup().owns_ipset
        for mode in all_modes()
        if mode.name != active.mode and (active.mode is None or not mode.cleanup().chains_in_use())
    ]
    return {"set_destroyed": destroy_ipsets(lambda name: any(owns(name) for owns in stale))}
