"""Which Services have metrics of their own."""

from collections.abc import Collection, Mapping

from svcproxy.accounting.core.frontends import FrontendKey, frontend_keys
from svcproxy.limits import SERVICE_METRICS
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort

ANNOTATION = "svcproxy.io/metrics"
"""A Service with this annotation and the value ``true`` has metrics."""


class ChosenServices:
    """The Services of one family that have metrics, at most ``SERVICE_METRICS``.

    Those that a flag names come first, then those with the annotation, by name.

    Args:
        family: the IP family.
        named: the Services that the flag names.

    Attributes:
        left_out: how many more Services are chosen than have metrics.
    """

    def __init__(self, family: IPFamily, named: Collection[NamespacedName] = ()) -> None:
        self._family = family
        self._named = frozenset(named)
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._frontends: dict[FrontendKey, ServicePortName] | None = {}
        self.left_out = 0

    def update(self, changed: Mapping[ServicePortName, ServicePort | None]) -> None:
        """Take changed Service ports; ``None`` for a removed one."""
        for name, port in changed.items():
            chosen = port is not None and (
                name.service in self._named or (ANNOTATION, "true") in port.annotations
            )
            if chosen and port is not None:
                self._ports[name] = port
            elif self._ports.pop(name, None) is None:
                continue
            self._frontends = None

    @property
    def frontends(self) -> Mapping[FrontendKey, ServicePortName]:
        """The frontends of the Services that have metrics, with their Service ports."""
        if self._frontends is None:
            services = {name.service for name in self._ports}
            order = sorted(services, key=lambda service: (service not in self._named, service))
            kept = set(order[:SERVICE_METRICS])
            self.left_out = len(order) - len(kept)
            ports = {name: port for name, port in self._ports.items() if name.service in kept}
            self._frontends = frontend_keys(self._family, ports)
        return self._frontends
