"""What becomes of a packet: the rules in a fake kernel, carried out expression by expression."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import collect, string
from tests.unit.nftables.fake_kernel import FakeKernel, expressions, verdict_of

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass
class Packet:
    """The first packet of a flow; ``chosen`` is what ``numgen`` comes to, as a share of 1."""

    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    interface: str = "eth0"
    mark: int = 0
    chosen: float = 0.0
    translated: tuple[str, int] | None = None
    masqueraded: bool = False

    def network(self) -> bytes:
        ends = [ip_address(a).packed for a in (self.source, self.destination)]
        return bytes(12 if len(ends[0]) == 4 else 8) + b"".join(ends)

    def transport(self) -> bytes:
        return bytes((0x9C, 0x40)) + self.port.to_bytes(2, "big")


class _Ended(Exception):  # noqa: N818 - it is no error
    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass
class Memory:
    """What packets leave in dynamic maps: data and time-out (ms) by key."""

    held: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    limit: int = 1 << 18


class Node:
    """A machine with the rules of a fake kernel; ``own`` are its addresses."""

    def __init__(self, kernel: FakeKernel, own: tuple[str, ...]) -> None:
        self.kernel = kernel
        self.own = {*own, "127.0.0.1", "::1"}
        self.memory = Memory()

    def send(self, packet: Packet) -> str:
        """Pass a packet through; ``accept``, ``reject`` or ``drop``."""
        local_source = packet.source in self.own
        hooks = [OUTPUT] if local_source else [PREROUTING]
        try:
            for hook in hooks:
                self._hook(hook, packet)
            if not local_source:
                self._hook(INPUT if packet.destination in self.own else FORWARD, packet)
            if local_source or packet.destination not in self.own:
                self._hook(POSTROUTING, packet)
            if local_source and packet.destination in self.own:
                self._hook(INPUT, packet)
        except _Ended as ended:
            return ended.verdict
        return "accept"

    def _hook(self, number: int, packet: Packet) -> None:
        bases = []
        for name, body in self.kernel.table.chains.items():
            parts = collect(body)
            if 4 in parts:
                hook = collect(parts[4])
                if int.from_bytes(hook[1], "big") == number:
                    priority = int.from_bytes(hook[2], "big", signed=True)
                    bases.append((priority, name, string(parts[7])))
        for _, name, kind in sorted(bases):
            if kind == "nat" and number != POSTROUTING and packet.translated:
                continue
            _Run(self, packet).chain(name)


class _Run:
    """One base chain and one packet."""

    def __init__(self, node: Node, packet: Packet) -> None:
        self.node = node
        self.packet = packet
        self.table = node.kernel.table

    def chain(self, name: str) -> bool:
        """Run a chain; whether the base chain is done."""
        for rule in self.table.rules[name]:
            verdict = _Rule(self).run(expressions(rule))
            if verdict is None:
                continue
            code, target = verdict
            if code == -3 and self.chain(target):
                return True
            if code == -4:
                return self.chain(target)
            if code == 0:
                raise _Ended("drop")
            if code == 1:
                return True
        return False


class _Rule:
    """The registers of one rule; ``known`` are the words that have been loaded."""

    def __init__(self, run: _Run) -> None:
        self.run_ = run
        self.packet = run.packet
        self.words = bytearray(64)
        self.known: set[int] = set()

    def _number(self, attributes: dict[int, bytes], kind: int) -> int:
        return int.from_bytes(attributes.get(kind, b""), "big")

    def _place(self, attributes: dict[int, bytes], kind: int) -> int:
        register = self._number(attributes, kind)
        return (register - 1) * 16 if register < 8 else (register - 8) * 4

    def _store(self, at: int, value: bytes) -> None:
        assert at + len(value) <= len(self.words), "registers are full"
        padded = value + bytes(-len(value) % 4)
        self.words[at : at + len(padded)] = padded
        self.known.update(range(at // 4, (at + len(padded)) // 4))

    def _load(self, at: int, length: int) -> bytes:
        wanted = set(range(at // 4, (at + length + 3) // 4))
        assert wanted <= self.known, f"words {wanted - self.known} were never loaded"
        return bytes(self.words[at : at + length])

    def run(self, rule: list[tuple[str, dict[int, bytes]]]) -> tuple[int, str] | None:
        """Carry out the expressions; the verdict, or ``None`` to go on with the next rule."""
        for name, attributes in rule:
            if name == "immediate":
                verdict = verdict_of(attributes)
                if verdict is not None:
                    return verdict
                self._store(self._place(attributes, 1), collect(attributes[2])[1])
            elif name in {"nat", "masq", "reject"}:
                return self._end(name, attributes)
            else:
                step: Callable[[dict[int, bytes]], bool] = getattr(self, f"_{name}")
                if not step(attributes):
                    return None
        return None

    def _end(self, name: str, attributes: dict[int, bytes]) -> tuple[int, str]:
        if name == "reject":
            raise _Ended("reject")
        if name == "masq":
            self.packet.masqueraded = True
            return 1, ""
        length = 4 if self._number(attributes, 2) == 2 else 16
        address = ip_address(self._load(self._place(attributes, 3), length))
        port = int.from_bytes(self._load(self._place(attributes, 5), 2), "big")
        self.packet.translated = (str(address), port)
        self.packet.destination, self.packet.port = str(address), port
        return 1, ""

    def _payload(self, attributes: dict[int, bytes]) -> bool:
        network = self._number(attributes, 2) == 1
        data = self.packet.network() if network else self.packet.transport()
        offset, length = self._number(attributes, 3), self._number(attributes, 4)
        self._store(self._place(attributes, 1), data[offset : offset + length])
        return True

    def _meta(self, attributes: dict[int, bytes]) -> bool:
        key = self._number(attributes, 2)
        if 3 in attributes:
            self.packet.mark = int.from_bytes(self._load(self._place(attributes, 3), 4), "little")
            return True
        values = {
            3: self.packet.mark.to_bytes(4, "little"),
            6: self.packet.interface.encode().ljust(16, b"\0"),
            16: bytes([_PROTOCOLS[self.packet.protocol]]),
        }
        self._store(self._place(attributes, 1), values[key])
        return True

    def _ct(self, attributes: dict[int, bytes]) -> bool:
        dnat = 0x20 if self.packet.translated else 0
        value = {0: 8, 2: dnat}[self._number(attributes, 2)]
        self._store(self._place(attributes, 1), value.to_bytes(4, "little"))
        return True

    def _fib(self, attributes: dict[int, bytes]) -> bool:
        source = self._number(attributes, 3) == 1
        address = self.packet.source if source else self.packet.destination
        kind = 2 if address in self.run_.node.own or address.startswith("127.") else 1
        self._store(self._place(attributes, 1), kind.to_bytes(4, "little"))
        return True

    def _cmp(self, attributes: dict[int, bytes]) -> bool:
        value = collect(attributes[3])[1]
        same = self._load(self._place(attributes, 1), len(value)) == value
        return same is (self._number(attributes, 2) == 0)

    def _bitwise(self, attributes: dict[int, bytes]) -> bool:
        length = self._number(attributes, 3)
        mask, xor = (collect(attributes[k])[1] for k in (4, 5))
        value = self._load(self._place(attributes, 1), length)
        parts = zip(value, mask, xor, strict=True)
        self._store(self._place(attributes, 2), bytes(v & m ^ x for v, m, x in parts))
        return True

    def _numgen(self, attributes: dict[int, bytes]) -> bool:
        number = int(self.packet.chosen * self._number(attributes, 2))
        self._store(self._place(attributes, 1), number.to_bytes(4, "little"))
        return True

    def _lookup(self, attributes: dict[int, bytes]) -> bool:
        name = string(attributes[1])
        held = self.run_.table.sets[name]
        key = self._load(self._place(attributes, 2), held.key_length)
        if name == "affinity":
            data = self.run_.node.memory.held.get(key, (None, 0))[0]
        else:
            tail = held.elements.get(key)
            data = None if tail is None else collect(collect(tail).get(2, b"")).get(1, b"")
        if data is None:
            return False
        if 3 in attributes:
            self._store(self._place(attributes, 3), data)
        return True

    def _dynset(self, attributes: dict[int, bytes]) -> bool:
        held = self.run_.table.sets[string(attributes[1])]
        memory = self.run_.node.memory
        key = self._load(self._place(attributes, 4), held.key_length)
        data = self._load(self._place(attributes, 5), held.data_length)
        if self._number(attributes, 3) == 2:
            memory.held.pop(key, None)
            return True
        if key not in memory.held and len(memory.held) >= memory.limit:
            return False
        known = memory.held.get(key, (data, 0))[0]
        memory.held[key] = (known, self._number(attributes, 6))
        return True


def family_of(address: str) -> IPFamily:
    return IPFamily.IPV6 if ":" in address else IPFamily.IPV4
