"""Runs the classic BPF programs of iptables' ``bpf`` match on an IP header."""

from typing import NamedTuple

from svcproxy.explain.core.packet import NUMBERS, Flow

_LOAD_WORD, _TO_INDEX, _EQUAL_INDEX, _RETURN = 32, 7, 29, 6


class Instruction(NamedTuple):
    """One instruction: its code, the jump offsets for true and false, and a constant."""

    code: int
    if_true: int
    if_false: int
    constant: int


class Program(NamedTuple):
    """A program as iptables-save prints it: ``4,48 0 0 9,21 0 1 6,…``."""

    instructions: tuple[Instruction, ...]

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Read a program.

        Raises:
            ValueError: the text is malformed, or has an instruction that is not known.
        """
        count, *rest = text.split(",")
        instructions = tuple(Instruction(*map(int, part.split())) for part in rest)
        known = {_LOAD_WORD, _TO_INDEX, _EQUAL_INDEX, _RETURN}
        if len(instructions) != int(count) or any(i.code not in known for i in instructions):
            raise ValueError(f"unknown BPF program {text!r:.80}")
        return cls(instructions)

    def matches(self, flow: Flow) -> bool:
        """Return whether the program accepts a packet."""
        header = _header(flow)
        accumulator = index = position = 0
        while True:
            code, if_true, if_false, constant = self.instructions[position]
            position += 1
            if code == _LOAD_WORD:
                accumulator = int.from_bytes(header[constant : constant + 4], "big")
            elif code == _TO_INDEX:
                index = accumulator
            elif code == _EQUAL_INDEX:
                position += if_true if accumulator == index else if_false
            else:
                return bool(constant)


def _header(flow: Flow) -> bytes:
    """Return an IP header in which only the addresses and the protocol are set."""
    protocol = bytes([NUMBERS[flow.protocol]])
    if len(flow.source) == 4:
        return bytes(9) + protocol + bytes(2) + flow.source + flow.destination
    return bytes(6) + protocol + bytes(1) + flow.source + flow.destination
