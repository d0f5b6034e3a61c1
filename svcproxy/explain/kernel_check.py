"""Compares the kernel with the desired state while the daemon runs."""

import time
from collections.abc import Callable, Mapping

import msgspec

from svcproxy.admin.client import AdminClient
from svcproxy.explain.core.diff_documents import KernelFound, persisting
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.kernel_state import FamilyKernel, read_kernel
from svcproxy.explain.mode_explainer import mode_explainer
from svcproxy.explain.views import view_of_daemon
from svcproxy.model.names import IPFamily

_PAUSES = (1.0, 2.0)
"""Seconds before the second and the third reading. The third one is only for a daemon that has
changes to write."""


class Checked(msgspec.Struct, frozen=True):
    """What a node is meant to do, and what its kernel holds."""

    view: NodeView
    states: Mapping[IPFamily, KernelFound]


def check(client: AdminClient, pause: Callable[[float], object] = time.sleep) -> Checked:
    """Compare the kernel with the desired state; only differences that persist count.

    The daemon may be writing what differs, so objects and kernel are read again after a pause. The
    second reading takes place only if the first one found a difference.

    Args:
        client: asks the daemon.
        pause: waits for some seconds.

    Raises:
        AdminError: the daemon does not answer.
    """
    view = view_of_daemon(client)
    states = _states(view)
    for seconds in _PAUSES:
        if not any(state.differences for state in states.values()):
            break
        pause(seconds)
        view = view_of_daemon(client)
        states = _confirmed(states, _states(view))
        if view.status is None or not any(f.pending for f in view.status.families.values()):
            break
    return Checked(view, states)


def _states(view: NodeView) -> Mapping[IPFamily, KernelFound]:
    return {family: _state(view, found) for family, found in read_kernel(view).items()}


def _state(view: NodeView, found: FamilyKernel) -> KernelFound:
    explainer = mode_explainer(view.mode)
    if found.error or explainer is None:
        return KernelFound(error=found.error)
    return KernelFound(found.differences, explainer.sizes(found.kernel))


def _confirmed(
    before: Mapping[IPFamily, KernelFound], after: Mapping[IPFamily, KernelFound]
) -> Mapping[IPFamily, KernelFound]:
    none = KernelFound()
    return {
        family: msgspec.structs.replace(
            state, differences=persisting(before.get(family, none).differences, state.differences)
        )
        for family, state in after.items()
    }
