"""What a mode declares about itself, so that no other code needs to know it by name.

Each folder of a backend has a module ``mode.py`` with one value ``MODE`` of type ``ModeSpec``.
``svcproxy/modes.py`` lists the folders; the daemon, the metrics and the clean-up read the value.
The functions in it import the backend's other modules when they are called, because a daemon
should not spend time and memory on modules of other modes.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from svcproxy.backends.base import Backend, BackendUnavailable, ExternalChange
from svcproxy.config import Config
from svcproxy.model.names import REQUIRED_KINDS, IPFamily, Kind

AnyBackend = Backend[Any, Any]
OnExternalChange = Callable[[ExternalChange], None]
SomeBackend = TypeVar("SomeBackend", bound=AnyBackend)

log = structlog.get_logger()


class Watcher(Protocol):
    """Listens for changes that other programs make to the kernel, in a thread of its own."""

    def start(self) -> None:
        """Start listening."""

    def stop(self) -> None:
        """Stop listening."""


class ReadyBackends(NamedTuple):
    """The backends of a mode for the families that this node can serve, after ``probe``.

    Attributes:
        backends: one backend for each family.
        watch: makes a watcher that calls its argument with each change of another program that
            affects these backends; ``None`` if only the periodic resync finds such changes.
        iptables_variant: the variant of iptables (``nft``, ``legacy``) that holds rules of the
            mode, if any does.
    """

    backends: Sequence[AnyBackend]
    watch: Callable[[OnExternalChange], Watcher] | None = None
    iptables_variant: str | None = None


class ActiveMode(msgspec.Struct, frozen=True):
    """The mode that serves traffic; its kernel objects must stay when others are cleaned up.

    Attributes:
        mode: its name; ``None`` for no mode (``--cleanup``).
        variant: the variant of iptables (``nft``, ``legacy``) that holds its rules, if any does.
        keep: CIDRs whose virtual servers belong to other programs (``--ipvs-exclude-cidrs``).
        accounting: whether the accounting tables are in use.
    """

    mode: str | None = None
    variant: str | None = None
    keep: tuple[str, ...] = ()
    accounting: bool = False


CleanupStep = Callable[[], Mapping[str, int]]
"""Removes objects; returns how many, by kind. It raises ``BackendError`` for what it could not
remove; the other steps are still taken."""


def _no_steps(*_: object) -> Iterable[CleanupStep]:
    return ()


def _no_ipset(_name: str) -> bool:
    return False


def _no_chains() -> tuple[str, ...]:
    return ()


class Cleanup(NamedTuple):
    """How to remove the kernel objects of a mode, svcproxy's and kube-proxy's.

    Attributes:
        rules: the steps that remove rules of one family, given the active mode, the family, and
            the iptables chains to keep for now. They run for the active mode, too: kube-proxy's
            objects are stale in any mode.
        shared: the steps that remove objects of both families, after rules no longer use them,
            given the active mode.
        owns_ipset: whether an ipset of that name belongs to the mode.
        chains_in_use: the iptables chains that must stay although another mode is active, because
            connections still depend on them. While there are any, the mode's ipsets stay as well.
    """

    rules: Callable[[ActiveMode, IPFamily, Collection[str]], Iterable[CleanupStep]] = _no_steps
    shared: Callable[[ActiveMode], Iterable[CleanupStep]] = _no_steps
    owns_ipset: Callable[[str], bool] = _no_ipset
    chains_in_use: Callable[[], tuple[str, ...]] = _no_chains


class ModeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that the daemon needs to know about a mode.

    Attributes:
        name: its name: the value of ``--proxy-mode``, and the mode in metrics and on pages.
        make: makes and probes the backends. It raises ``BackendUnavailable`` if none can serve.
        kinds: the kinds of API objects that the mode follows.
        annotations: the keys of the Service annotations that its backend interprets.
        longest_pause: the longest pause in seconds between two syncs while changes keep coming,
            if the schedule adapts to how long syncs take.
        metrics: those of kube-proxy's metrics that only some modes have and this one shows,
            without the prefix ``kubeproxy_``.
        cleanup: returns how to remove what the mode leaves in the kernel.
        writes_kernel: whether it programs the kernel. Otherwise, the daemon sets no kernel
            parameters, deletes no conntrack entries, opens no health-check node ports, and removes
            no objects of other modes either.
    """

    name: str
    make: Callable[[Config], ReadyBackends]
    kinds: frozenset[Kind] = REQUIRED_KINDS
    annotations: frozenset[str] = frozenset()
    longest_pause: float = math.inf
    metrics: frozenset[str] = frozenset()
    cleanup: Callable[[], Cleanup] = Cleanup
    writes_kernel: bool = True


def probed(make: Callable[[IPFamily], SomeBackend]) -> list[SomeBackend]:
    """Make and probe the backend of each family.

    Returns:
        The backends of the families that this node can serve. Others are logged.

    Raises:
        BackendUnavailable: no family can be served; the message names the remedy.
    """
    backends: list[SomeBackend] = []
    reasons: list[BackendUnavailable] = []
    for family in IPFamily:
        try:
            backend = make(family)
            backend.probe()
        except BackendUnavailable as error:
            reasons.append(error)
        else:
            backends.append(backend)
    if not backends:
        raise reasons[0]
    for reason in reasons:
        log.warning("family.unavailable", reason=str(reason), effect="single-stack operation")
    return backends
