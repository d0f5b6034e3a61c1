"""Evaluates an nftables table for a packet, expression by expression."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from svcproxy.explain.core.nft_print import rule_text
from svcproxy.explain.core.nft_table import (
    HOOKS,
    Expression,
    NftTable,
    decode_rule,
    describe_chain,
    describe_set,
    verdict_of,
)
from svcproxy.explain.core.packet import (
    NUMBERS,
    Flow,
    Host,
    State,
    UnknownRuleError,
    Update,
)
from svcproxy.explain.core.trace import NEGLIGIBLE, Action, Recorder, Step, merge

_DROP, _ACCEPT, _CONTINUE, _JUMP, _GOTO, _RETURN = 0, 1, -1, -3, -4, -5
_STATES = {State.INVALID: 1, State.ESTABLISHED: 2, State.RELATED: 4, State.NEW: 8}
_TRANSLATED = 0x20
_DELETE = 2
_TIMEOUT_FLAG = 0x10
_LOCAL, _UNICAST = 2, 1
_DESTINATION, _RANDOM = 1, 1
_NETWORK, _TRANSPORT = 1, 2
_MARK = 3


class NftRuleset:
    """The rules of one nftables table.

    Args:
        table: the table.
        full: names of dynamic sets that have reached their size limit.
    """

    def __init__(self, table: NftTable, full: frozenset[str] = frozenset()) -> None:
        self.table = table
        self.full = full

    @cached_property
    def _bases(self) -> dict[str, list[tuple[int, str, str]]]:
        """Base chains by hook, in priority order, as priority, name and type."""
        found: dict[str, list[tuple[int, str, str]]] = {hook: [] for hook in HOOKS}
        for name, body in self.table.chains.items():
            info = describe_chain(body)
            if info.hook >= 0:
                found[HOOKS[info.hook]].append((info.priority, name, info.kind))
        return {hook: sorted(bases) for hook, bases in found.items()}

    def is_local(self, host: Host, address: bytes) -> bool:
        """Whether the node takes an address for its own."""
        return host.is_local(address)

    def run_hook(
        self, recorder: Recorder, hook: str, flow: Flow, weight: float
    ) -> dict[Flow, float]:
        """Run the base chains of a hook on a flow; see ``trace.Ruleset``."""
        flows = {flow: weight}
        looped = hook == "LOOPED"
        for _, name, kind in self._bases["PREROUTING" if looped else hook]:
            recorder.enter(f"{kind} {name}")
            passed: dict[Flow, float] = {}
            for each, share in flows.items():
                skip = kind == "nat" and (looped or not _consults_nat(each, hook))
                run = {each: share} if skip else _Evaluation(self, recorder).base(name, each, share)
                merge(passed, run)
            flows = passed
        return flows

    def after(self, updates: Iterable[Update]) -> "NftRuleset":
        """Return a copy with the elements that packets have added and deleted."""
        return NftRuleset(self.table.after(updates), self.full)

    def text(self, step: Step) -> str:
        """Return the rule of a step in nft syntax."""
        return rule_text(self.table, self.table.rules[step.chain][step.position])


def _consults_nat(flow: Flow, hook: str) -> bool:
    """Return whether nat chains are called: for new connections, once for each direction."""
    return flow.state is State.NEW and (hook == "POSTROUTING" or not flow.translated)


class _Evaluation:
    """Evaluates one base chain for one flow."""

    def __init__(self, ruleset: NftRuleset, recorder: Recorder) -> None:
        self.ruleset = ruleset
        self.table = ruleset.table
        self.recorder = recorder
        self._accepted: dict[Flow, float] = {}

    def base(self, chain: str, flow: Flow, weight: float) -> dict[Flow, float]:
        """Run a base chain; its policy applies at its end."""
        ended = self._run(chain, {flow: weight})
        if describe_chain(self.table.chains[chain]).accepts:
            merge(self._accepted, ended)
        else:
            for each, share in ended.items():
                self.recorder.end(Action.DROP, each, share)
        return self._accepted

    def _run(self, chain: str, flows: dict[Flow, float]) -> dict[Flow, float]:
        """Run a chain; return the flows that return to its caller."""
        returned: dict[Flow, float] = {}
        if chain not in self.table.chains:
            raise UnknownRuleError(f"jump to chain {chain!r}, which is missing")
        for position, body in enumerate(self.table.rules.get(chain, ())):
            if not flows:
                break
            following: dict[Flow, float] = {}
            for flow, weight in flows.items():
                self.recorder.count(weight)
                for end in _Rule(self, body).run(flow, weight):
                    if end.verdict is not None or end.flow != flow:
                        step = Step(self.table.name, chain, position, end.weight)
                        self.recorder.steps.append(step)
                    self._follow(end, following, returned)
            flows = following
        merge(returned, flows)
        return returned

    def _follow(
        self, end: "_End", following: dict[Flow, float], returned: dict[Flow, float]
    ) -> None:
        """Apply a verdict: continue, return from the chain, or end."""
        flows = {end.flow: end.weight}
        code, target = end.verdict or (_CONTINUE, "")
        if code == _CONTINUE:
            merge(following, flows)
        elif code == _JUMP:
            merge(following, self._run(target, flows))
        elif code == _GOTO:
            merge(returned, self._run(target, flows))
        elif code == _RETURN:
            merge(returned, flows)
        elif code == _ACCEPT:
            merge(self._accepted, flows)
        else:
            action = Action.REJECT if target == "reject" else Action.DROP
            self.recorder.end(action, end.flow, end.weight)


class _End(NamedTuple):
    """The result of a rule for a share of the packets; without a verdict the next rule follows."""

    flow: Flow
    weight: float
    verdict: tuple[int, str] | None


class _Branch:
    """The registers of one rule, for a share of the packets.

    ``pending`` is a random number that is loaded but not read yet: its word and its range. The
    look-up that reads it creates the branches, so that misses stay one branch.
    """

    __slots__ = ("flow", "known", "pending", "weight", "words")

    def __init__(self, flow: Flow, weight: float) -> None:
        self.flow = flow
        self.weight = weight
        self.words = bytearray(64)
        self.known: set[int] = set()
        self.pending: tuple[int, int] | None = None

    def store(self, word: int, value: bytes) -> None:
        """Store a value in registers, starting at a word and padded to whole words."""
        padded = value + bytes(-len(value) % 4)
        if word * 4 + len(padded) > len(self.words):
            raise UnknownRuleError("a value does not fit into the registers")
        self.words[word * 4 : word * 4 + len(padded)] = padded
        self.known.update(range(word, word + len(padded) // 4))

    def load(self, word: int, length: int) -> bytes:
        """Read registers; they must have been loaded before."""
        if self.pending is not None and word <= self.pending[0] < word + (length + 3) // 4:
            raise UnknownRuleError("a random number is read by something else than a look-up")
        if not self.known.issuperset(range(word, word + (length + 3) // 4)):
            raise UnknownRuleError(f"register word {word} is read before it is loaded")
        return bytes(self.words[word * 4 : word * 4 + length])

    def copy(self, weight: float) -> "_Branch":
        """Copy this branch with another weight."""
        made = _Branch(self.flow, weight)
        made.words[:] = self.words
        made.known = set(self.known)
        return made


class _Rule:
    """Evaluates one rule for one flow, in branches."""

    def __init__(self, evaluation: _Evaluation, body: bytes) -> None:
        self._evaluation = evaluation
        self._table = evaluation.table
        self._body = body

    def run(self, flow: Flow, weight: float) -> Iterator[_End]:
        """Evaluate the rule; yield one result for each distinct outcome."""
        branches = [_Branch(flow, weight)]
        missed: dict[Flow, float] = {}
        for expression in decode_rule(self._body).expressions:
            following: list[_Branch] = []
            for branch in branches:
                verdict = self._verdict(expression, branch)
                if verdict is not None:
                    yield _End(branch.flow, branch.weight, verdict)
                    continue
                before = branch.weight
                passed = self._step(expression, branch)
                following += passed
                left = before - sum(each.weight for each in passed)
                if left > NEGLIGIBLE:
                    merge(missed, {branch.flow: left})
            branches = following
            if not branches:
                break
        for branch in branches:
            merge(missed, {branch.flow: branch.weight})
        for ended, share in missed.items():
            yield _End(ended, share, None)

    def _verdict(self, expression: Expression, branch: _Branch) -> tuple[int, str] | None:
        """Return the verdict of an expression that ends the rule, ``None`` for other expressions."""
        match expression.name:
            case "immediate":
                return verdict_of(expression)
            case "reject":
                return _DROP, "reject"
            case "masq":
                branch.flow = branch.flow._replace(masqueraded=True)
                return _ACCEPT, ""
            case "nat":
                if expression.number(1) != _DESTINATION:
                    raise UnknownRuleError("nat of the source")
                address = branch.load(expression.register(3), len(branch.flow.source))
                port = int.from_bytes(branch.load(expression.register(5), 2), "big")
                branch.flow = branch.flow._replace(destination=address, port=port, translated=True)
                return _ACCEPT, ""
        return None

    def _step(self, expression: Expression, branch: _Branch) -> list[_Branch]:
        """Evaluate an expression; return the branches that reach the next expression."""
        if expression.name == "lookup":
            return self._lookup(expression, branch)
        step: Callable[[Expression, _Branch], bool] | None
        step = getattr(self, f"_on_{expression.name}", None)
        if step is None:
            raise UnknownRuleError(
                f"expression {expression.name!r} in {rule_text(self._table, self._body)!r}"
            )
        return [branch] if step(expression, branch) else []

    def _on_immediate(self, expression: Expression, branch: _Branch) -> bool:
        branch.store(expression.register(1), expression.value(2))
        return True

    def _on_payload(self, expression: Expression, branch: _Branch) -> bool:
        flow = branch.flow
        offset, length = expression.number(3), expression.number(4)
        header = expression.number(2)
        if header == _NETWORK:
            data = bytes(12 if len(flow.source) == 4 else 8) + flow.source + flow.destination
            first = 12 if len(flow.source) == 4 else 8
        else:
            data = bytes(2) + flow.port.to_bytes(2, "big")
            first = 2
        if header not in {_NETWORK, _TRANSPORT} or not first <= offset <= len(data) - length:
            raise UnknownRuleError(
                f"payload of header {header}, bytes {offset} to {offset + length}"
            )
        branch.store(expression.register(1), data[offset : offset + length])
        return True

    def _on_meta(self, expression: Expression, branch: _Branch) -> bool:
        flow, key = branch.flow, expression.number(2)
        if 3 in expression.attributes:
            if key != _MARK:
                raise UnknownRuleError(f"meta key {key} is set")
            mark = int.from_bytes(branch.load(expression.register(3), 4), "little")
            branch.flow = flow._replace(mark=mark)
            return True
        if key == _MARK:
            value = flow.mark.to_bytes(4, "little")
        elif key == 6:
            value = flow.interface.encode().ljust(16, b"\0")
        elif key == 16:
            value = bytes([NUMBERS[flow.protocol]])
        else:
            raise UnknownRuleError(f"meta key {key}")
        branch.store(expression.register(1), value)
        return True

    def _on_ct(self, expression: Expression, branch: _Branch) -> bool:
        flow, key = branch.flow, expression.number(2)
        if key not in {0, 2}:
            raise UnknownRuleError(f"ct key {key}")
        value = _STATES[flow.state] if key == 0 else _TRANSLATED * flow.translated
        branch.store(expression.register(1), value.to_bytes(4, "little"))
        return True

    def _on_fib(self, expression: Expression, branch: _Branch) -> bool:
        which = {1: branch.flow.source, 2: branch.flow.destination}.get(expression.number(3))
        if which is None or expression.number(2) != 3:
            raise UnknownRuleError("fib asks for something else than the type of an address")
        kind = _LOCAL if self._evaluation.recorder.is_local(which) else _UNICAST
        branch.store(expression.register(1), kind.to_bytes(4, "little"))
        return True

    def _on_cmp(self, expression: Expression, branch: _Branch) -> bool:
        if expression.number(2) not in {0, 1}:
            raise UnknownRuleError(f"comparison operator {expression.number(2)}")
        value = expression.value(3)
        same = branch.load(expression.register(1), len(value)) == value
        return same is (expression.number(2) == 0)

    def _on_bitwise(self, expression: Expression, branch: _Branch) -> bool:
        mask, xor = expression.value(4), expression.value(5)
        value = branch.load(expression.register(1), expression.number(3))
        parts = zip(value, mask, xor, strict=True)
        branch.store(expression.register(2), bytes(v & m ^ x for v, m, x in parts))
        return True

    def _on_numgen(self, expression: Expression, branch: _Branch) -> bool:
        if expression.number(3) != _RANDOM or expression.number(4):
            raise UnknownRuleError("numgen that counts, or has an offset")
        below, word = expression.number(2), expression.register(1)
        choose = self._evaluation.recorder.choose
        if choose is None and below > 1:
            branch.pending = word, below
            branch.known.add(word)
        else:
            branch.store(word, int((choose or 0.0) * below).to_bytes(4, "little"))
        return True

    def _lookup(self, expression: Expression, branch: _Branch) -> list[_Branch]:
        name = expression.text(1)
        if name not in self._table.sets:
            raise UnknownRuleError(f"look-up in set {name!r}, which is missing")
        if expression.number(5):
            raise UnknownRuleError(f"inverted look-up in set {name!r}")
        word, length = expression.register(2), describe_set(self._table.sets[name]).key_length
        branches: Iterable[_Branch] = (branch,)
        if branch.pending is not None and word <= branch.pending[0] < word + length // 4:
            branches = self._draw(branch)
        found: list[_Branch] = []
        for each in branches:
            value = self._value(each, name, each.load(word, length))
            if value is None:
                continue
            if 3 in expression.attributes:
                each.store(expression.register(3), value)
            found.append(each)
        return found

    @staticmethod
    def _draw(branch: _Branch) -> Iterator[_Branch]:
        """Yield one branch for each value of the random number."""
        assert branch.pending is not None
        word, below = branch.pending
        for number in range(below):
            drawn = branch.copy(branch.weight / below)
            drawn.store(word, number.to_bytes(4, "little"))
            yield drawn

    def _value(self, branch: _Branch, name: str, key: bytes) -> bytes | None:
        """Return a map's value, including changes that the packet itself has made."""
        for update in reversed(branch.flow.updates):
            if update.where == name and update.key == key:
                return update.value
        return self._table.value(name, key)

    def _on_dynset(self, expression: Expression, branch: _Branch) -> bool:
        name = expression.text(1)
        info = describe_set(self._table.sets[name])
        key = branch.load(expression.register(4), info.key_length)
        data = branch.load(expression.register(5), info.data_length) if info.data_length else b""
        known = self._value(branch, name, key)
        if expression.number(3) == _DELETE:
            update = Update(name, key, None)
        elif known is None and name in self._evaluation.ruleset.full:
            return False
        else:
            seconds = expression.number(6) // 1000
            update = Update(name, key, data if known is None else known, seconds)
        branch.flow = branch.flow._replace(updates=(*branch.flow.updates, update))
        return True
