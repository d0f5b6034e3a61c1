"""The Services of a node as rows of a table, with what is wrong with each. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

import msgspec

from svcproxy.explain.core.service_documents import PortInfo, ServiceSummary
from svcproxy.model.serviceport import Verdict


class Trouble(Enum):
    """What is wrong with a Service, the most serious first."""

    HELD = "held back"
    DIFFERS = "kernel differs"
    CONFLICT = "address conflict"
    REFUSED = "refused"
    DROPPED = "dropped"
    OTHER = "incomplete"


_RANK = {kind: rank for rank, kind in enumerate(Trouble)}


class ServiceRow(msgspec.Struct, frozen=True):
    """A Service.

    Attributes:
        name: ``namespace/name``.
        frontends: its addresses with ports, as texts.
        used: the number of endpoints to which it forwards.
        known: the number of its endpoints, used or not.
        troubles: what is wrong with it, the most serious first; usually nothing.
        problems: the same in words, with reasons.
    """

    name: str
    frontends: tuple[str, ...]
    used: int
    known: int
    troubles: tuple[Trouble, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, str]:
        """Sorts Services in trouble by seriousness, then by name."""
        return (_RANK[self.troubles[0]], self.name)

    def matches(self, text: str) -> bool:
        """Whether the name or an address contains a text in lower case."""
        return text in self.name or any(text in frontend for frontend in self.frontends)


def service_rows(services: Iterable[ServiceSummary]) -> tuple[ServiceRow, ...]:
    """Return Services as rows, in the same order."""
    return tuple(map(_row, services))


def _row(service: ServiceSummary) -> ServiceRow:
    frontends = [frontend for port in service.ports for frontend in port.frontends]
    kinds = set(_troubles(service)) or ({Trouble.OTHER} if service.problems else set())
    return ServiceRow(
        name=f"{service.namespace}/{service.name}",
        frontends=tuple(dict.fromkeys(frontend.text for frontend in frontends)),
        # The ports, and the families, have the same pods as endpoints in most cases
        used=max((frontend.endpoints_used for frontend in frontends), default=0),
        known=max((frontend.endpoints_known for frontend in frontends), default=0),
        troubles=tuple(sorted(kinds, key=_RANK.__getitem__)),
        problems=service.problems,
    )


def _troubles(service: ServiceSummary) -> Iterator[Trouble]:
    if service.conflicts:
        yield Trouble.CONFLICT
    for port in service.ports:
        yield from _port_troubles(port)


def _port_troubles(port: PortInfo) -> Iterator[Trouble]:
    if port.held:
        yield Trouble.HELD
    if port.kernel_differences:
        yield Trouble.DIFFERS
    verdicts = {frontend.verdict for frontend in port.frontends}
    if Verdict.REJECT.value in verdicts:
        yield Trouble.REFUSED
    if Verdict.DROP.value in verdicts:
        yield Trouble.DROPPED


def in_trouble(rows: Iterable[ServiceRow]) -> Sequence[ServiceRow]:
    """Return the Services in trouble, the most serious first."""
    return sorted((row for row in rows if row.troubles), key=lambda row: row.rank)
