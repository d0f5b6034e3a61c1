"""Decides which Service gets an address and port that several Services claim."""

from bisect import insort
from collections.abc import Iterable, Iterator

import msgspec

from svcproxy.model.names import NamespacedName, Protocol


class Address(msgspec.Struct, frozen=True, gc=False, order=True):
    """The identity of a frontend; ``address`` is empty for node ports."""

    address: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        place = self.address or "node port"
        return f"{place} {self.port}/{self.protocol}"


class Conflict(msgspec.Struct, frozen=True, gc=False):
    """``loser`` claims an address that ``winner`` holds. ``loser`` may get it when ``winner`` releases it."""

    address: Address
    winner: NamespacedName
    loser: NamespacedName


class Claim(msgspec.Struct, frozen=True, gc=False, order=True):
    """A Service's claim to an address; the smallest claim wins.

    A cluster IP precedes every external claim, because a Service must not take another Service's
    cluster IP by listing it as an external IP (CVE-2020-8554). Then the older Service wins, then
    the name decides.
    """

    external: bool
    created: float
    service: NamespacedName


class Claims:
    """The claims of all Services by address."""

    def __init__(self) -> None:
        self._by_address: dict[Address, list[Claim]] = {}
        self._of_service: dict[NamespacedName, dict[Address, Claim]] = {}

    def replace(
        self, service: NamespacedName, claims: dict[Address, Claim]
    ) -> Iterable[NamespacedName]:
        """Replace the claims of a Service; return the other Services that are affected.

        These are the previous and the new holders of every address whose holder changed.
        """
        before = self._of_service.get(service, {})
        affected: set[NamespacedName] = set()
        for address in before.keys() | claims.keys():
            old, new = before.get(address), claims.get(address)
            if old == new:
                continue
            if new is not None and address not in self._by_address:
                # The usual case, above all at the start: there is no other claim to the address.
                self._by_address[address] = [new]
                continue
            holder = self.holder(address)
            self._replace_claim(address, old, new)
            if self.holder(address) != holder:
                affected.update(n for n in (holder, self.holder(address)) if n is not None)
        if claims:
            self._of_service[service] = claims
        else:
            self._of_service.pop(service, None)
        affected.discard(service)
        return affected

    def _replace_claim(self, address: Address, old: Claim | None, new: Claim | None) -> None:
        claims = self._by_address.setdefault(address, [])
        if old is not None:
            claims.remove(old)
        if new is not None:
            insort(claims, new)
        if not claims:
            del self._by_address[address]

    def claim(self, service: NamespacedName, address: Address) -> Claim | None:
        """Return the claim of a Service to an address; ``None`` if it does not claim it."""
        return self._of_service.get(service, {}).get(address)

    def claimants(self, service: NamespacedName) -> Iterator[NamespacedName]:
        """Yield a Service, and those that claim one of its addresses, as often as they do.

        Safe from any thread.
        """
        yield service
        for address in list(self._of_service.get(service, {})):
            for claim in list(self._by_address.get(address, ())):
                yield claim.service

    def holder(self, address: Address) -> NamespacedName | None:
        """Return the Service that holds an address; ``None`` if no Service claims it."""
        claims = self._by_address.get(address)
        return claims[0].service if claims else None
