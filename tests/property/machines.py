"""A node without a kernel of its own: desired state, a planner, and what plans are applied to."""

from typing import Any, Self

from svcproxy.backends.base import Desired
from svcproxy.model.names import NamespacedName
from svcproxy.model.objects import EndpointSlice, Node, Service
from svcproxy.state.desired import DesiredState
from tests.property.strategies import NODE, SYNC


class Machine:
    """One family's state, planner and kernel, driven by events as the sync loop would.

    Args:
        options: the backend's settings.
        planner: the backend's planner.
        kernel: what stands for the kernel.
    """

    def __init__(self, options: Any, planner: Any, kernel: Any) -> None:
        self.options = options
        self.state = DesiredState(options.family, NODE)
        self.planner = planner
        self.kernel = kernel
        self.objects: dict[Any, Any] = {}
        self.full = True

    def observed(self) -> Any:
        """What a reading of the kernel gives."""
        return self.kernel.observed()

    def apply(self, plan: Any) -> None:
        """Carry out a plan."""
        self.kernel.apply(plan)

    def applied(self, plan: Any) -> None:
        """Called with every plan that a sync has applied."""

    def contents(self) -> Any:
        """Everything in the kernel that has a meaning."""
        raise NotImplementedError

    def take(self, event: Any) -> None:
        """Let the state know of an event."""
        if isinstance(event, Node):
            self.objects["node"] = event
        elif isinstance(event, Service | EndpointSlice):
            self.objects[type(event), event.name] = event
        elif event[0] == "node":
            self.objects.pop("node", None)
        else:
            kind = Service if event[0] == "service" else EndpointSlice
            self.objects.pop((kind, event[1]), None)
        feed(self.state, event)

    def take_all(self, events: list[Any]) -> Self:
        """Take events, and sync where they say so."""
        for event in events:
            if event == SYNC:
                self.sync()
            else:
                self.take(event)
        return self

    def compare(self, planner: Any = None) -> Any:
        """The plan of a comparison from scratch."""
        desired = Desired(self.state.ports, self.options)
        return (planner or self.planner).plan(desired, self.options, self.observed())

    def sync(self) -> None:
        """Bring the kernel up to date, from scratch the first time."""
        changes = self.state.checkout()
        plan = self.compare() if self.full else self.planner.plan_changes(changes.ports)
        self.full = False
        self.apply(plan)
        self.applied(plan)

    def take_over(self, other: "Machine") -> Self:
        """Take the last state of each object that another machine knows, and sync once."""
        return self.take_all([*other.objects.values(), SYNC])

    def take_shuffled(self, other: "Machine", random: Any) -> Self:
        """The same in any order, with syncs at any time."""
        objects = list(other.objects.values())
        random.shuffle(objects)
        for obj in objects:
            self.take(obj)
            if random.random() < 0.3:
                self.sync()
        self.sync()
        return self


def feed(state: DesiredState, event: Any) -> None:
    """Let a state know of an event: an object, or a pair that names the one that was deleted."""
    match event:
        case Service():
            state.update_service(event)
        case EndpointSlice():
            state.update_slice(event)
        case Node():
            state.update_node(event)
        case ("service", NamespacedName() as name):
            state.delete_service(name)
        case ("slice", NamespacedName() as name):
            state.delete_slice(name)
        case _:
            state.update_node(None)
