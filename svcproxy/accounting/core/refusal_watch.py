"""Decides when refused connections are worth an Event."""

from collections.abc import Mapping

from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.model.names import NamespacedName

MANY = 100
"""Refused attempts of a Service in one period that are worth an Event."""


class RefusalWatch:
    """Compares the counters of refused attempts from period to period.

    A Service is named once. It is named again only after a period in which it refused fewer than
    ``MANY`` attempts.
    """

    def __init__(self) -> None:
        self._before: dict[FrontendKey, int] = {}
        self._named: frozenset[NamespacedName] = frozenset()

    def update(
        self, refused: Mapping[FrontendKey, int], services: Mapping[FrontendKey, NamespacedName]
    ) -> list[NamespacedName]:
        """Return the Services that refused many attempts since the last call, and did not before.

        Args:
            refused: the counter of each frontend that refuses now.
            services: the Service of each of these frontends.
        """
        gained: dict[NamespacedName, int] = {}
        for key, count in refused.items():
            before = self._before.get(key, 0)
            new = count - before if count >= before else count  # the counter began again
            if key in services:
                gained[services[key]] = gained.get(services[key], 0) + new
        self._before = dict(refused)
        many = frozenset(service for service, count in gained.items() if count >= MANY)
        found = sorted(many - self._named)
        self._named = many
        return found
