"""The audit: comparing virtual servers with their expected state, one chunk of the listing at a time.

Each virtual server is compared when it has been read, with its expected state at that moment, so
plans may be executed between two chunks. Concurrent writers can shift virtual servers between
chunks, so one may appear twice or not at all. Those that do not appear are queried one by one at
the end of a pass.

For each expected virtual server one number is kept: a sum of the hashes of its properties and of
its real servers, in any order (``hash`` of bytes has 64 bits and a secret of this process).
"""

import msgspec

from svcproxy.backends.ipvs.core.difference import Plan
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.netlink.core import ipvs_listing
from svcproxy.netlink.core.ipvs_listing import Line
from svcproxy.netlink.core.kernel_objects import RealServers, VirtualServer, VirtualServerKey

_MASK = (1 << 59) - 1  # with one more bit it takes 32 bytes, and not 36
_HEADERS = (b"\nTCP ", b"\nUDP ", b"\nSCTP ", b"\nFWM ")
_OVERLAP = max(map(len, _HEADERS)) - 1
"""A header may begin this many bytes before the end of a chunk."""


class Difference(msgspec.Struct, frozen=True):
    """A virtual server that is not as expected; ``problem`` says in what way."""

    key: VirtualServerKey
    problem: str

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.key))} {self.problem}"


class _Expected:
    """The expected sums by the start of a line, and which of them the present pass has seen.

    The lowest bit of each number is a mark: it equals the mark of the pass if the line was seen.
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

    def __contains__(self, line: bytes) -> bool:
        return line in self._sums

    def put(self, line: bytes, total: int) -> None:
        """Expect a virtual server; it was just written, so it counts as seen."""
        self._sums[line] = (total & _MASK) << 1 | self._mark

    def remove(self, line: bytes) -> None:
        if self._sums.pop(line, self._mark) & 1 != self._mark:
            self.unseen -= 1

    def see(self, line: bytes, total: int) -> bool:
        """Compare a virtual server that was read; return whether it is as expected."""
        value = self._sums.get(line)
        if value is None or value >> 1 != total & _MASK:
            return False
        if value & 1 != self._mark:
            self._sums[line] = value ^ 1
            self.unseen -= 1
        return True

    def is_unseen(self, line: bytes) -> bool:
        return self._sums.get(line, self._mark) & 1 != self._mark

    def all_unseen(self) -> list[bytes]:
        return [line for line, value in self._sums.items() if value & 1 != self._mark]


class Audit:
    """Passes through the listing of one family's virtual servers.

    A pass is ``begin``, ``take`` for each chunk, ``end``, and ``answer`` for each of ``unseen``.
    Between these calls, ``resynced``, ``changed`` and ``written`` report executed plans. Before
    the pass continues, ``compute`` must be called until ``outdated`` is 0.

    Args:
        planner: has the expected state.
        ticks: the kernel's ticks per second.
    """

    def __init__(self, planner: Planner, ticks: int) -> None:
        self._planner = planner
        self._ticks = ticks
        self._expected = _Expected()
        self._outdated: dict[ServicePortName, None] = {}
        self._rest: list[bytes] = []
        self._stale = False

    @property
    def outdated(self) -> int:
        """The number of Service ports whose expected lines must be computed."""
        return len(self._outdated)

    @property
    def size(self) -> int:
        """The number of expected virtual servers, without lingering ones."""
        return len(self._expected)

    @property
    def computed(self) -> float:
        """The fraction of Service ports whose expected lines are computed."""
        return 1 - len(self._outdated) / max(len(self._planner.ports), len(self._outdated), 1)

    @property
    def seen(self) -> float:
        """The fraction of virtual servers that the present pass has seen."""
        return 1 - self._expected.unseen / max(len(self._expected), 1)

    def resynced(self) -> None:
        """Report a resync: the state of every Service port may have changed."""
        self._expected.clear()
        self._outdated = dict.fromkeys(self._planner.ports)
        self._rest, self._stale = [], False

    def changed(self, plan: Plan) -> None:
        """Report an executed plan for changed Service ports."""
        for key in plan.former:
            self._expected.remove(ipvs_listing.format_key(key))
        self._outdated.update(dict.fromkeys(plan.ports))
        self.written()

    def written(self) -> None:
        """Report executed operations: a virtual server that was half read may have changed."""
        self._stale = bool(self._rest)

    def compute(self, limit: int) -> None:
        """Compute the expected lines of at most ``limit`` Service ports."""
        for _ in range(min(limit, len(self._outdated))):
            name, _ = self._outdated.popitem()
            for key, (server, real) in self._planner.held(name):
                total = hash(self._properties(server))
                total += sum(hash(ipvs_listing.format_real_server(each, 1)) for each in real)
                self._expected.put(ipvs_listing.format_key(key), total)

    # --- A pass ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a pass at the start of the listing."""
        self._expected.begin()
        self._rest, self._stale = [], False

    def take(self, chunk: bytes) -> Difference | None:
        """Compare the virtual servers in the next chunk of the listing.

        The last virtual server may continue in the next chunk, so it is kept until then.
        """
        # A virtual server with 100,000 real servers takes 500 chunks. They are join_lines once.
        before = self._rest[-1][-_OVERLAP:] if self._rest else b""
        searched = before + chunk
        last = max(searched.rfind(header) for header in _HEADERS) + 1
        if last == 0 and self._rest:
            self._rest.append(chunk)
            return None
        text = b"".join((*self._rest, chunk))
        end = last and last + len(text) - len(searched)
        found = self._compare(text[:end])
        self._rest, self._stale = [text[end:]], False
        return found

    def end(self) -> Difference | None:
        """Compare the last virtual server at the end of the listing."""
        found = self._compare(b"".join(self._rest))
        self._rest, self._stale = [], False
        return found

    def unseen(self) -> list[bytes]:
        """Return the expected virtual servers that the listing did not contain."""
        return self._expected.all_unseen() if self._expected.unseen else []

    def to_query(self, line: bytes) -> VirtualServerKey | None:
        """Return the key of an unseen virtual server; ``None`` if it need not be queried now."""
        return ipvs_listing.parse_key(line) if self._expected.is_unseen(line) else None

    def answer(
        self, key: VirtualServerKey, server: VirtualServer | None, real: RealServers
    ) -> Difference | None:
        """Compare a virtual server that was queried; ``server`` is ``None`` if it is missing."""
        if server is None:
            return Difference(key, "is missing")
        lines = [(b"", ipvs_listing.format_key(key), self._properties(server))]
        lines += (
            (ipvs_listing.format_real_server(each, weight), b"", b"")
            for each, weight in real.items()
        )
        return self._compare_parsed(lines)

    def _compare(self, text: bytes) -> Difference | None:
        lines: list[Line] = ipvs_listing.LINES.findall(text)
        see = self._expected.see
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
        # A virtual server that a plan may have changed between two chunks remains unseen.
        stale = self._stale and first == 0
        return None if stale else self._compare_parsed(lines[first:end])

    def _compare_parsed(self, lines: list[Line]) -> Difference | None:
        """Compare a virtual server whose lines differ from the expected text.

        It may be another program's, have draining real servers, or be formatted in another way.
        """
        _, written, properties = lines[0]
        if (b"[" in written) is not (self._family is IPFamily.IPV6):
            return None
        key = ipvs_listing.parse_key(written)
        if key is None:
            return None
        real = [ipvs_listing.parse_real_server(line) for line, _, _ in lines[1:]]
        draining = self._planner.draining.real_servers(key)
        staying = [each for each in real if each[1] or each[0] not in draining]
        if written in self._expected:
            total = hash(ipvs_listing.normalize_properties(properties, self._family))
            total += sum(hash(ipvs_listing.format_real_server(*each)) for each in staying)
            seen = self._expected.see(written, total)
            return None if seen else Difference(key, "has other properties or real servers")
        if self._planner.is_refused(key):
            return None
        if key in self._planner.draining.lingering:
            return Difference(key, "has real servers that do not drain") if staying else None
        return Difference(key, "is not wanted") if self._planner.owns(key) else None

    def _properties(self, server: VirtualServer) -> bytes:
        return ipvs_listing.format_properties(server, self._family, self._ticks)

    @property
    def _family(self) -> IPFamily:
        return self._planner.settings.family
