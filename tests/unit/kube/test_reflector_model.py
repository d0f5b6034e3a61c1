from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from svcproxy.kube.core.outputs import Cause, Changed, Output, Removed, Step
from svcproxy.kube.core.reflector import Reflector
from svcproxy.model.names import Kind
from tests.examples import examples
from tests.fakes.lines import bookmark, error, event, item, page


class FollowsTheServer(RuleBasedStateMachine):
    """After a complete answer both sides hold the same objects, whatever happened before."""

    def __init__(self) -> None:
        super().__init__()
        self.reflector = Reflector(Kind.SERVICE, page_size=2)
        self.held: dict[str, str] = {}
        self.server: dict[str, int] = {}
        self.version = 1
        self.history: list[tuple[int, bytes]] = []
        self.oldest = 0
        self.current = False

    def apply(self, output: Output) -> Output:
        for effect in output.effects:
            match effect:
                case Changed(name=name, obj=obj):
                    self.held[name.name] = obj.metadata.resource_version or ""
                case Removed(name=name):
                    self.held.pop(name.name, None)
                case _:
                    pass
        return output

    @rule(name=st.sampled_from("abcd"))
    def put(self, name: str) -> None:
        self.version += 1
        type_ = "MODIFIED" if name in self.server else "ADDED"
        self.server[name] = self.version
        self.history.append((self.version, event(type_, item(name, self.version))))
        self.current = False

    @precondition(lambda self: self.server)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.server)))
        del self.server[name]
        self.version += 1
        self.history.append((self.version, event("DELETED", item(name, self.version))))
        self.current = False

    @rule()
    def compact(self) -> None:
        self.oldest = self.version

    @rule(cut_after=st.none() | st.integers(0, 5), refuse=st.sampled_from([0, 0, 0, 422, 500]))
    def connect(self, cut_after: int | None, refuse: int) -> None:
        request = self.reflector.next_request()
        sent = dict(request.query)
        if refuse and (refuse != 422 or request.initial):
            self.reflector.error_response(refuse, b"")
            return
        if not request.watch:
            begin = int(sent.get("continue", 0))
            # Pages may show different states of the server; no object may be lost.
            if begin and not self.current:
                self.reflector.error_response(410, b"")
                return
            end = begin + int(sent.get("limit", 100))
            items = [item(name, version) for name, version in sorted(self.server.items())]
            token = str(end) if end < len(items) else ""
            body = page(*items[begin:end], version=self.version, token=token)
            self.apply(self.reflector.list_page(body))
            self.current = True
            return
        if request.initial:
            lines = [event("ADDED", item(n, v)) for n, v in sorted(self.server.items())]
            lines.append(bookmark(self.version, end=True))
        elif int(sent["resourceVersion"]) < self.oldest:
            lines = [error(410)]
        else:
            lines = [line for v, line in self.history if v > int(sent["resourceVersion"])]
        whole = cut_after is None or cut_after >= len(lines)
        output = self.apply(self.reflector.watch_lines(lines[:cut_after]))
        if output.step is Step.CONTINUE:
            self.reflector.response_ended(
                Cause.CUT if not whole or request.initial else Cause.CLOSED
            )
        self.current = whole and lines[-1:] != [error(410)]

    @invariant()
    def nothing_is_held_that_never_was(self) -> None:
        assert all(int(version) <= self.version for version in self.held.values())

    def teardown(self) -> None:
        for _ in range(8):
            self.connect(None, 0)
        assert self.held == {name: str(version) for name, version in self.server.items()}


FollowsTheServer.TestCase.settings = settings(
    max_examples=examples(60), stateful_step_count=25, deadline=None
)
TestFollowsTheServer = FollowsTheServer.TestCase
