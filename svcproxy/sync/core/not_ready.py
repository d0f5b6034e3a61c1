"""Remembers since when endpoints are not ready, for people who ask. Pure."""

from collections.abc import Mapping

from svcproxy.limits import NOT_READY_ENDPOINTS
from svcproxy.model.names import NamespacedName
from svcproxy.model.objects import EndpointSlice


class NotReady:
    """When endpoints that were ready before stopped being ready, by Service and address.

    The API does not say it. Only endpoints that are not ready are remembered, at most
    ``limits.NOT_READY_ENDPOINTS``. An endpoint that was not ready when it was first seen is not.
    """

    def __init__(self) -> None:
        self._since: dict[NamespacedName, dict[str, float]] = {}
        self._number = 0

    def changed(
        self, before: EndpointSlice | None, after: EndpointSlice | None, now: float
    ) -> None:
        """Note that a slice changed.

        Args:
            before: the slice as it was; ``None`` if it is new.
            after: the slice as it is now; ``None`` if it was deleted.
            now: the time in seconds since 1970.
        """
        if before is None:
            return
        was = {endpoint.address for endpoint in before.endpoints if not endpoint.ready}
        if after is None or after.service != before.service:
            self._forget(before.service, was)
            return
        now_not = {endpoint.address for endpoint in after.endpoints if not endpoint.ready}
        if was == now_not:
            return
        self._forget(before.service, was - now_not)
        for endpoint in before.endpoints:
            if endpoint.ready and endpoint.address in now_not:
                self._remember(after.service, endpoint.address, now)

    def by_service(self) -> Mapping[NamespacedName, Mapping[str, float]]:
        """Return the times in seconds since 1970; safe from any thread."""
        return {service: dict(times) for service, times in list(self._since.items())}

    def _remember(self, service: NamespacedName, address: str, now: float) -> None:
        times = self._since.get(service, {})
        if address not in times and self._number < NOT_READY_ENDPOINTS:
            self._since.setdefault(service, times)[address] = now
            self._number += 1

    def _forget(self, service: NamespacedName, addresses: set[str]) -> None:
        times = self._since.get(service)
        if times is None:
            return
        for address in addresses:
            if times.pop(address, None) is not None:
                self._number -= 1
        if not times:
            del self._since[service]
