"""What a node is meant to do, computed from the objects that its daemon has. Pure.

A command asks the daemon for its objects and settings and computes the rest with the daemon's own
code, in its own process. Without a daemon, the objects come from manifests.
"""

from collections.abc import Iterable, Mapping

import msgspec

from svcproxy.admin.core.protocol import Status
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import ApiObject, EndpointSlice, Node, Service, ServiceCIDR
from svcproxy.state.desired import Changes, DesiredState


class FamilyView(msgspec.Struct, frozen=True):
    """One IP family of a node.

    Attributes:
        family: the family.
        state: the desired state; it is checked out, so its Service ports are current.
        changes: what the checkout returned: conflicts, and Services that exceed a limit.
        settings: what the rules of the mode depend on besides Service ports.
    """

    family: IPFamily
    state: DesiredState
    changes: Changes
    settings: Settings


class NodeView(msgspec.Struct, frozen=True):
    """What a node is meant to do.

    Attributes:
        node: the name of the node.
        mode: the proxy mode.
        config: the effective flags.
        families: the families that are served.
        status: what the daemon says about itself; ``None`` without a daemon.
    """

    node: str
    mode: str
    config: Config
    families: Mapping[IPFamily, FamilyView]
    status: Status | None = None


def desired_state(
    family: IPFamily, node_name: str, config: Config, objects: Iterable[ApiObject]
) -> tuple[DesiredState, Changes]:
    """Compute the desired state of a family from all objects; Nodes of other names are ignored."""
    state = DesiredState(family, node_name, external_ips=config.allows_external_ips)
    for obj in objects:
        match obj:
            case Service():
                state.update_service(obj)
            case EndpointSlice():
                state.update_slice(obj)
            case ServiceCIDR():
                state.update_service_cidr(obj)
            case Node() if obj.name == node_name:
                state.update_node(obj)
    return state, state.checkout()
