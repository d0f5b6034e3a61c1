"""Who may use an address and port when several Services claim it."""

from bisect import insort
from collections.abc import Iterable

import msgspec

from svcproxy.model.names import NamespacedName, Protocol


class Address(msgspec.Struct, frozen=True, gc=False, order=True):
    """A frontend's identity: ``address`` is empty for node ports."""

    address: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        place = self.address or "node port"
        return f"{place} {self.port}/{self.protocol}"


class Conflict(msgspec.Struct, frozen=True, gc=False):
    """``loser`` asked for an address that ``winner`` holds; it takes over when that one goes."""

    address: Address
    winner: NamespacedName
    loser: NamespacedName


class Claim(msgspec.Struct, frozen=True, gc=False, order=True):
    """A Service's title to an address; the smallest claim wins.

    A cluster IP goes before any external claim (nobody may take over a Service's cluster IP by
    naming it as an external IP, CVE-2020-8554), then the older Service, then the name.
    """

    external: bool
    created: float
    service: NamespacedName


class Claims:
    """All claims by address."""

    def __init__(self) -> None:
        self._by_address: dict[Address, list[Claim]] = {}
        self._of_service: dict[NamespacedName, dict[Address, Claim]] = {}

    def replace(
        self, service: NamespacedName, claims: dict[Address, Claim]
    ) -> Iterable[NamespacedName]:
        """Make ``claims`` the Service's claims; return the other Services that this concerns.

        Those are the previous and the new holders of every address whose holder changed.
        """
        before = self._of_service.get(service, {})
        concerned: set[NamespacedName] = set()
        for address in before.keys() | claims.keys():
            old, new = before.get(address), claims.get(address)
            if old == new:
                continue
            if new is not None and address not in self._by_address:
                # Nearly always, and all of a cold start: nobody else has heard of the address.
                self._by_address[address] = [new]
                continue
            holder = self.holder(address)
            self._swap(address, old, new)
            if self.holder(address) != holder:
                concerned.update(n for n in (holder, self.holder(address)) if n is not None)
        if claims:
            self._of_service[service] = claims
        else:
            self._of_service.pop(service, None)
        concerned.discard(service)
        return concerned

    def _swap(self, address: Address, old: Claim | None, new: Claim | None) -> None:
        held = self._by_address.setdefault(address, [])
        if old is not None:
            held.remove(old)
        if new is not None:
            insort(held, new)
        if not held:
            del self._by_address[address]

    def holder(self, address: Address) -> NamespacedName | None:
        """The Service that may use the address, if any claims it."""
        held = self._by_address.get(address)
        return held[0].service if held else None
