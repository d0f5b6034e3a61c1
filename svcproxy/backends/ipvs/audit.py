"""Comparing virtual servers with what is wanted, a piece of their listing at a time.

Each virtual server is compared as soon as it has been read, with what is wanted at that moment.
Only strangers write besides us, so our own changes between two pieces confuse nothing. What those
move about in the file is read twice or not at all; the latter is named at the end, to be asked
for one by one.

Pure. For each wanted virtual server one number is kept, made of its properties and, in any order,
its real servers (``hash`` of bytes, which has 64 bits and a secret of this process).
"""

import msgspec

from svcproxy.backends.ipvs.plan import Plan
from svcproxy.backends.ipvs.planner import Planner
from svcproxy.backends.ipvs.termination import Termination
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.netlink.core import ipvs_listing
from svcproxy.netlink.core.ipvs_listing import Line
from svcproxy.netlink.core.kernel_objects import RealServers, VirtualServer, VirtualServerKey

_MASK = (1 << 59) - 1  # with one more bit it takes 32 bytes, and not 36
_HEADERS = (b"\nTCP ", b"\nUDP ", b"\nSCTP ", b"\nFWM ")
_OVERLAP = max(map(len, _HEADERS)) - 1
"""A header may begin so many bytes before the end of a piece."""


class Difference(msgspec.Struct, frozen=True):
    """A virtual server that is not as it should be; ``problem`` says in what way."""

    key: VirtualServerKey
    problem: str

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.key))} {self.problem}"


class _Wanted:
    """What should be listed, and what of it has been seen in the present pass.

    The lowest bit of a number changes when it has been seen.
    """

    def __init__(self) -> None:
        self._sums: dict[bytes, int] = {}
        self._mark = 0
        self.unseen = 0

    def clear(self) -> None:
        self._sums.clear()
        self.unseen = 0

    def begin(self) -> None:
        self._mark ^= 1
        self.unseen = len(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def __contains__(self, written: bytes) -> bool:
        return written in self._sums

    def put(self, written: bytes, total: int) -> None:
        """Want something new; we have just written it, so that it counts as seen."""
        self._sums[written] = (total & _MASK) << 1 | self._mark

    def remove(self, written: bytes) -> None:
        if self._sums.pop(written, self._mark) & 1 != self._mark:
            self.unseen -= 1

    def see(self, written: bytes, total: int) -> bool:
        """Note what has been read; whether it is wanted like that."""
        value = self._sums.get(written)
        if value is None or value >> 1 != total & _MASK:
            return False
        if value & 1 != self._mark:
            self._sums[written] = value ^ 1
            self.unseen -= 1
        return True

    def is_unseen(self, written: bytes) -> bool:
        return self._sums.get(written, self._mark) & 1 != self._mark

    def all_unseen(self) -> list[bytes]:
        return [written for written, value in self._sums.items() if value & 1 != self._mark]


class Audit:
    """Passes through the listing of one family's virtual servers.

    A pass is ``begin``, ``take`` for each piece, ``end``, and ``answer`` for each of ``unseen``.
    Between these, ``compared``, ``changed`` and ``written`` tell of what we do ourselves; ``renew``
    has to be called until ``outdated`` is 0 before anything is judged.

    Args:
        planner: knows what is wanted.
        termination: knows what drains.
        ticks: how many of the kernel's ticks there are in a second.
    """

    def __init__(self, planner: Planner, termination: Termination, ticks: int) -> None:
        self._planner = planner
        self._termination = termination
        self._ticks = ticks
        self._wanted = _Wanted()
        self._outdated: dict[ServicePortName, None] = {}
        self._rest: list[bytes] = []
        self._stale = False

    @property
    def outdated(self) -> int:
        """Of how many Service ports it has to be computed what they should look like."""
        return len(self._outdated)

    @property
    def size(self) -> int:
        """How many virtual servers there should be, but for those that only drain."""
        return len(self._wanted)

    @property
    def known(self) -> float:
        """Of which share of the Service ports that is not outdated."""
        return 1 - len(self._outdated) / max(len(self._planner.ports), len(self._outdated), 1)

    @property
    def seen(self) -> float:
        """Which share of the virtual servers the present pass has seen."""
        return 1 - self._wanted.unseen / max(len(self._wanted), 1)

    def compared(self) -> None:
        """Note that everything has been compared: what is wanted may be all new."""
        self._wanted.clear()
        self._outdated = dict.fromkeys(self._planner.ports)
        self._rest, self._stale = [], False

    def changed(self, plan: Plan) -> None:
        """Note a plan that has been carried out."""
        for key in plan.former:
            self._wanted.remove(ipvs_listing.format_key(key))
        self._outdated.update(dict.fromkeys(plan.ports))
        self.written()

    def written(self) -> None:
        """Note that we have written something: what was read before may not be so any more."""
        self._stale = bool(self._rest)

    def renew(self, most: int) -> None:
        """Compute what at most so many Service ports should look like."""
        for _ in range(min(most, len(self._outdated))):
            name, _ = self._outdated.popitem()
            for key, (server, real) in self._planner.held(name):
                total = hash(self._properties(server))
                total += sum(hash(ipvs_listing.format_real_server(each, 1)) for each in real)
                self._wanted.put(ipvs_listing.format_key(key), total)

    # --- A pass ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a pass at the start of the file."""
        self._wanted.begin()
        self._rest, self._stale = [], False

    def take(self, piece: bytes) -> Difference | None:
        """Judge the virtual servers in the next piece of the file.

        The last of them may go on in the next piece, and waits for it.
        """
        # One with 100,000 real servers takes 500 pieces: they are put together once, at its end.
        before = self._rest[-1][-_OVERLAP:] if self._rest else b""
        looked_at = before + piece
        last = max(looked_at.rfind(header) for header in _HEADERS) + 1
        if last == 0 and self._rest:
            self._rest.append(piece)
            return None
        text = b"".join((*self._rest, piece))
        end = last and last + len(text) - len(looked_at)
        found = self._judge(text[:end])
        self._rest, self._stale = [text[end:]], False
        return found

    def end(self) -> Difference | None:
        """Judge what is left at the end of the file."""
        found = self._judge(b"".join(self._rest))
        self._rest, self._stale = [], False
        return found

    def unseen(self) -> list[bytes]:
        """What has not come up in this pass, to be asked for by itself."""
        return self._wanted.all_unseen() if self._wanted.unseen else []

    def asked(self, written: bytes) -> VirtualServerKey | None:
        """Which virtual server that is, if it is still to be asked for."""
        return ipvs_listing.parse_key(written) if self._wanted.is_unseen(written) else None

    def answer(
        self, key: VirtualServerKey, server: VirtualServer | None, real: RealServers
    ) -> Difference | None:
        """Judge a virtual server that was asked for; ``None`` if there is none."""
        if server is None:
            return Difference(key, "is missing")
        lines = [(b"", ipvs_listing.format_key(key), self._properties(server))]
        lines += (
            (ipvs_listing.format_real_server(each, weight), b"", b"")
            for each, weight in real.items()
        )
        return self._look_closely(lines)

    def _judge(self, text: bytes) -> Difference | None:
        lines: list[Line] = ipvs_listing.LINES.findall(text)
        see = self._wanted.see
        found, first, written, total = None, 0, b"", 0
        for number, (real, header, properties) in enumerate(lines):
            if real:
                total += hash(real)
                continue
            if written and not see(written, total):
                found = found or self._suspected(lines, first, number)
            first, written, total = number, header, hash(properties)
        if written and not see(written, total):
            found = found or self._suspected(lines, first, len(lines))
        return found

    def _suspected(self, lines: list[Line], first: int, end: int) -> Difference | None:
        # What waited for its end while we wrote is left for the end of the pass.
        stale = self._stale and first == 0
        return None if stale else self._look_closely(lines[first:end])

    def _look_closely(self, lines: list[Line]) -> Difference | None:
        """Judge a virtual server that is not in its usual form, not ours, or loses servers."""
        _, written, properties = lines[0]
        if (b"[" in written) is not (self._family is IPFamily.IPV6):
            return None
        key = ipvs_listing.parse_key(written)
        if key is None:
            return None
        real = [ipvs_listing.parse_real_server(line) for line, _, _ in lines[1:]]
        draining = self._termination.draining(key)
        staying = [each for each in real if each[1] or each[0] not in draining]
        if written in self._wanted:
            total = hash(ipvs_listing.normalize_properties(properties, self._family))
            total += sum(hash(ipvs_listing.format_real_server(*each)) for each in staying)
            seen = self._wanted.see(written, total)
            return None if seen else Difference(key, "has other properties or real servers")
        if self._planner.is_refused(key):
            return None
        if key in self._planner.lingering:
            return Difference(key, "has other real servers than drain") if staying else None
        return Difference(key, "is not wanted") if self._planner.owns(key) else None

    def _properties(self, server: VirtualServer) -> bytes:
        return ipvs_listing.format_properties(server, self._family, self._ticks)

    @property
    def _family(self) -> IPFamily:
        return self._planner.settings.family
