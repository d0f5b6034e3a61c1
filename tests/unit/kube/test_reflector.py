from typing import Any

import pytest

from svcproxy import limits
from svcproxy.kube.core.lines import LongLine
from svcproxy.kube.core.outputs import (
    Cause,
    Changed,
    Effect,
    Listed,
    Malformed,
    Removed,
    Selectors,
    Step,
)
from svcproxy.kube.core.reflector import Reflector
from svcproxy.model.names import Kind, NamespacedName
from tests.fakes.lines import bookmark, error, event, item, page, status

SERVICES = Selectors(labels="!other", fields="spec.clusterIP!=None", optional=True)


def summary(effects: list[Effect]) -> list[str]:
    """Summarise effects: ``+a`` changed, ``-a`` removed, ``!a`` malformed, ``=2`` listed."""
    short = []
    for effect in effects:
        match effect:
            case Changed(name=name):
                short.append(f"+{name.name}")
            case Removed(name=name):
                short.append(f"-{name.name}")
            case Malformed(name=malformed):
                short.append(f"!{malformed.name if malformed else '?'}")
            case Listed(count=count):
                short.append(f"={count}")
    return short


def query(reflector: Reflector) -> dict[str, str]:
    return dict(reflector.next_request().query)


def streaming(*names: str) -> Reflector:
    """Make a reflector whose initial stream has delivered these names at version 10."""
    reflector = Reflector(Kind.SERVICE)
    reflector.next_request()
    reflector.watch_lines(
        [event("ADDED", item(name, 1)) for name in names] + [bookmark(10, end=True)]
    )
    return reflector


def listing(**options: Any) -> Reflector:
    return Reflector(Kind.SERVICE, watch_list=False, **options)


def watching(*names: str) -> Reflector:
    """Make a reflector that has listed these names at version 10 and watches."""
    reflector = listing()
    reflector.next_request()
    reflector.list_page(page(*(item(name, 1) for name in names)))
    reflector.next_request()
    if not names:  # an empty list is accepted the second time
        reflector.list_page(page())
        reflector.next_request()
    return reflector


class TestInitialStream:
    def test_the_request_asks_for_initial_events(self) -> None:
        request = Reflector(Kind.SERVICE, SERVICES).next_request()
        assert request.watch
        assert request.initial
        assert dict(request.query) == {
            "labelSelector": "!other",
            "fieldSelector": "spec.clusterIP!=None",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
        }

    def test_a_bookmark_completes_the_list_and_the_watch_continues_in_the_same_response(
        self,
    ) -> None:
        reflector = Reflector(Kind.SERVICE)
        reflector.next_request()
        output = reflector.watch_lines([event("ADDED", item("a", 3)), event("ADDED", item("b", 4))])
        assert (summary(output.effects), output.step) == (["+a", "+b"], Step.CONTINUE)
        output = reflector.watch_lines([bookmark(10, end=True)])
        assert (summary(output.effects), output.step) == (["=2"], Step.CONTINUE)
        output = reflector.watch_lines(
            [event("MODIFIED", item("a", 11)), event("DELETED", item("b", 12))]
        )
        assert summary(output.effects) == ["+a", "-b"]
        assert reflector.response_ended(Cause.CLOSED).step is Step.RETRY_NOW
        request = reflector.next_request()
        assert not request.initial
        assert dict(request.query)["resourceVersion"] == "12"

    def test_a_new_stream_removes_missing_objects_and_delivers_changed_ones(
        self,
    ) -> None:
        reflector = streaming("a", "b", "c")
        reflector.watch_lines([error(410)])
        assert reflector.next_request().initial
        output = reflector.watch_lines(
            [event("ADDED", item("a", 1)), event("ADDED", item("b", 20))]
        )
        assert summary(output.effects) == ["+a", "+b"]
        output = reflector.watch_lines([bookmark(21, end=True)])
        assert summary(output.effects) == ["-c", "=2"]
        reflector.watch_lines([event("MODIFIED", item("b", 22)), error(410)])
        reflector.next_request()
        lines = [event("ADDED", item("a", 1)), event("ADDED", item("b", 22))]
        assert summary(reflector.watch_lines([*lines, bookmark(23, end=True)]).effects) == [
            "+b",
            "=2",
        ]

    def test_an_interrupted_stream_removes_nothing_and_is_requested_again(self) -> None:
        reflector = streaming("a", "b")
        reflector.watch_lines([error(410)])
        reflector.next_request()
        reflector.watch_lines([event("ADDED", item("c", 20))])
        output = reflector.response_ended(Cause.CUT, "reset by peer")
        assert (output.effects, output.step) == ([], Step.BACK_OFF)
        assert output.warning == "reset by peer"
        assert reflector.next_request().initial
        output = reflector.watch_lines([event("ADDED", item("b", 1)), bookmark(30, end=True)])
        assert sorted(summary(output.effects)) == ["+b", "-a", "-c", "=1"]

    def test_a_deletion_before_the_end_of_initial_events_is_applied(self) -> None:
        reflector = Reflector(Kind.SERVICE)
        reflector.next_request()
        kept = event("ADDED", item("kept", 1))
        output = reflector.watch_lines(
            [
                kept,
                event("ADDED", item("a", 1)),
                event("DELETED", item("a", 2)),
                bookmark(3, end=True),
            ]
        )
        assert summary(output.effects) == ["+kept", "+a", "-a", "=1"]

    @pytest.mark.parametrize("code", [400, 422])
    def test_a_server_that_refuses_streaming_is_listed(self, code: int) -> None:
        reflector = Reflector(Kind.SERVICE, SERVICES)
        reflector.next_request()
        output = reflector.error_response(code, status(code, "sendInitialEvents is forbidden"))
        assert (output.step, output.restarted) == (Step.RETRY_NOW, "")
        assert query(reflector) == {
            "labelSelector": "!other",
            "fieldSelector": "spec.clusterIP!=None",
            "limit": "500",
        }

    @pytest.mark.parametrize("cause", [Cause.IDLE, Cause.CLOSED])
    def test_a_server_that_ignores_streaming_is_listed(self, cause: Cause) -> None:
        reflector = Reflector(Kind.SERVICE)
        reflector.next_request()
        reflector.watch_lines([event("ADDED", item("a", 1))])
        assert reflector.response_ended(cause).step is Step.RETRY_NOW
        assert "limit" in query(reflector)
        assert summary(reflector.list_page(page(item("a", 1))).effects) == ["=1"]

    def test_a_plain_bookmark_shows_that_streaming_is_ignored(self) -> None:
        reflector = Reflector(Kind.SERVICE)
        reflector.next_request()
        assert reflector.watch_lines([bookmark(5)]).step is Step.RETRY_NOW
        assert "limit" in query(reflector)

    def test_other_errors_do_not_disable_streaming(self) -> None:
        reflector = Reflector(Kind.SERVICE)
        for code in (401, 403, 404, 429, 500):
            reflector.next_request()
            assert reflector.error_response(code, b"").step is Step.BACK_OFF
            assert reflector.next_request().initial


class TestList:
    def test_all_pages_are_requested(self) -> None:
        reflector = listing(page_size=2)
        assert query(reflector) == {"limit": "2"}
        output = reflector.list_page(page(item("a", 1), item("b", 2), token="next"))
        assert (summary(output.effects), output.step) == (["+a", "+b"], Step.CONTINUE)
        assert query(reflector) == {"limit": "2", "continue": "next"}
        output = reflector.list_page(page(item("c", 3), version=10))
        assert summary(output.effects) == ["+c", "=3"]
        assert query(reflector)["resourceVersion"] == "10"

    def test_a_failed_page_is_requested_again(self) -> None:
        reflector = listing()
        reflector.next_request()
        reflector.list_page(page(item("a", 1), token="next"))
        reflector.next_request()
        assert reflector.response_ended(Cause.CUT).step is Step.BACK_OFF
        assert query(reflector)["continue"] == "next"
        assert summary(reflector.list_page(page(item("b", 2))).effects) == ["+b", "=2"]

    def test_an_expired_token_leads_to_one_unpaged_list(self) -> None:
        reflector = listing()
        reflector.next_request()
        reflector.list_page(page(item("a", 1), item("b", 1), token="next"))
        reflector.next_request()
        output = reflector.error_response(410, status(410, "too old"))
        assert (output.step, output.restarted) == (Step.RETRY_NOW, "")
        assert query(reflector) == {}
        output = reflector.list_page(page(item("b", 1), item("c", 1)))
        assert summary(output.effects) == ["+c", "-a", "=2"]
        reflector.watch_lines([error(410)])
        assert query(reflector) == {"limit": "500"}

    def test_a_body_that_is_not_a_list_is_an_error(self) -> None:
        reflector = listing()
        reflector.next_request()
        output = reflector.list_page(b"<html>")
        assert (output.effects, output.step) == ([], Step.BACK_OFF)
        assert "unreadable list" in output.warning

    def test_an_unsupported_field_selector_is_dropped(self) -> None:
        reflector = Reflector(Kind.SERVICE, SERVICES, watch_list=False)
        reflector.next_request()
        output = reflector.error_response(
            400, status(400, "field label not supported: spec.clusterIP")
        )
        assert output.step is Step.RETRY_NOW
        assert query(reflector) == {"labelSelector": "!other", "limit": "500"}
        assert reflector.error_response(400, b"").step is Step.BACK_OFF

    def test_streaming_is_kept_when_only_the_field_selector_is_unknown(self) -> None:
        reflector = Reflector(Kind.SERVICE, SERVICES)
        reflector.next_request()
        reflector.error_response(400, status(400, "field label not supported: spec.clusterIP"))
        request = reflector.next_request()
        assert request.initial
        assert "fieldSelector" not in dict(request.query)

    def test_a_required_field_selector_is_kept(self) -> None:
        reflector = Reflector(Kind.NODE, Selectors(fields="metadata.name=me"), watch_list=False)
        reflector.next_request()
        assert reflector.error_response(400, b"").step is Step.BACK_OFF
        assert query(reflector)["fieldSelector"] == "metadata.name=me"


class TestWatch:
    def test_bookmarks_advance_the_version(self) -> None:
        reflector = watching("a")
        assert reflector.watch_lines([bookmark(40), b"", b"  "]).effects == []
        assert query(reflector)["resourceVersion"] == "40"
        reflector.watch_lines([event("BOOKMARK", {"metadata": 3})])
        assert query(reflector)["resourceVersion"] == "40"

    @pytest.mark.parametrize(
        ("cause", "step", "restarted"),
        [
            (Cause.CLOSED, Step.RETRY_NOW, ""),
            (Cause.IDLE, Step.RETRY_NOW, "idle"),
            (Cause.CUT, Step.BACK_OFF, "cut"),
        ],
    )
    def test_an_interrupted_watch_resumes_at_its_version(
        self, cause: Cause, step: Step, restarted: str
    ) -> None:
        reflector = watching("a")
        reflector.watch_lines([event("ADDED", item("b", 11))])
        output = reflector.response_ended(cause)
        assert (output.effects, output.step, output.restarted) == ([], step, restarted)
        assert query(reflector)["resourceVersion"] == "11"
        assert summary(reflector.watch_lines([event("ADDED", item("b", 11))]).effects) == []

    @pytest.mark.parametrize("as_event", [True, False])
    def test_gone_leads_to_a_new_list_immediately(self, *, as_event: bool) -> None:
        reflector = watching("a", "b")
        output = (
            reflector.watch_lines([error(410, "too old"), event("ADDED", item("x", 12))])
            if as_event
            else reflector.error_response(410, status(410, "too old"))
        )
        assert (output.effects, output.step) == ([], Step.RETRY_NOW)
        assert (output.restarted, output.warning) == ("gone", "HTTP 410: too old")
        assert query(reflector) == {"limit": "500"}
        output = reflector.list_page(page(item("b", 2), item("c", 3)))
        assert summary(output.effects) == ["+b", "+c", "-a", "=2"]

    @pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
    @pytest.mark.parametrize("as_event", [True, False])
    def test_temporary_errors_keep_the_version(self, code: int, *, as_event: bool) -> None:
        reflector = watching("a")
        output = (
            reflector.watch_lines([error(code)])
            if as_event
            else reflector.error_response(code, b"")
        )
        assert (output.step, output.restarted) == (Step.BACK_OFF, "refused")
        assert query(reflector)["resourceVersion"] == "10"

    def test_a_server_with_older_data_is_listed_again(self) -> None:
        reflector = watching("a")
        message = "Too large resource version: 10, current: 5"
        assert reflector.error_response(504, status(504, message)).step is Step.BACK_OFF
        assert query(reflector) == {"limit": "500"}

    @pytest.mark.parametrize(
        "line", [b"<html>", b'{"type": "NEWS", "object": {}}', b'{"type": 3}', b"{"]
    )
    def test_a_line_that_is_not_an_event_ends_the_watch(self, line: bytes) -> None:
        reflector = watching("a")
        output = reflector.watch_lines([line, event("ADDED", item("b", 11))])
        assert (output.effects, output.step) == ([], Step.BACK_OFF)
        assert output.restarted == "unreadable"
        assert query(reflector)["resourceVersion"] == "10"

    def test_a_deletion_of_an_unknown_object_is_delivered(self) -> None:
        assert summary(watching().watch_lines([event("DELETED", item("x", 11))]).effects) == ["-x"]

    def test_start_over_delivers_everything_again(self) -> None:
        reflector = watching("a", "b")
        reflector.start_over()
        assert query(reflector) == {"limit": "500"}
        assert summary(reflector.list_page(page(item("a", 1))).effects) == ["+a", "-b", "=1"]

    def test_start_over_repeats_the_last_removals(self) -> None:
        reflector = watching("a", "b", "c")
        reflector.watch_lines([event("DELETED", item("c", 11))])
        assert summary(reflector.watch_lines([event("DELETED", item("b", 12))]).effects) == ["-b"]
        reflector.start_over()  # the consumer processed the first output, but not the second
        reflector.next_request()
        assert summary(reflector.list_page(page(item("a", 1))).effects) == ["+a", "-b", "=1"]
        reflector.start_over()
        reflector.next_request()
        assert summary(reflector.list_page(page(item("a", 1))).effects) == ["+a", "-b", "=1"]


class TestMalformed:
    def test_a_malformed_item_affects_no_other(self) -> None:
        reflector = listing()
        reflector.next_request()
        bad = item("bad", 2, spec={"ports": "none"})
        output = reflector.list_page(page(item("a", 1), bad, item("c", 3)))
        assert summary(output.effects) == ["+a", "!bad", "+c", "=3"]
        assert output.effects[1] == Malformed(
            NamespacedName("default", "bad"), "spec.ports", "expected array, got str"
        )

    def test_an_object_that_becomes_malformed_is_not_removed(self) -> None:
        reflector = watching("a")
        bad = item("a", 11, spec={"ports": "none"})
        assert summary(reflector.watch_lines([event("MODIFIED", bad)]).effects) == ["!a"]
        assert query(reflector)["resourceVersion"] == "11"
        reflector.watch_lines([error(410)])
        reflector.next_request()
        assert summary(reflector.list_page(page(bad)).effects) == ["!a", "=1"]

    def test_a_nameless_object_is_reported(self) -> None:
        output = watching().watch_lines([event("ADDED", {"metadata": 3}), event("ADDED", {})])
        assert summary(output.effects) == ["!?", "!?"]
        assert output.step is Step.CONTINUE
        assert watching().watch_lines([event("DELETED", {"metadata": 3})]).effects == []

    def test_an_object_of_another_kind_is_refused_by_name(self) -> None:
        pod = {"kind": "Pod", **item("a", 11)}
        for type_ in ("ADDED", "MODIFIED", "DELETED"):
            reflector = watching("a")
            output = reflector.watch_lines([event(type_, pod)])
            name = NamespacedName("default", "a")
            assert output.effects == [Malformed(name, "kind", "'Pod' is not Service")]
            assert query(reflector)["resourceVersion"] == "11"

    def test_malformed_json_affects_its_object_only_and_advances_the_version(self) -> None:
        reflector = watching("a")
        broken = b'{"type":"MODIFIED","object":{"metadata":{"name":"a","namespace":"default",'
        broken += b'"resourceVersion":"11"},"spec":{"ports":[}}'
        output = reflector.watch_lines([broken, event("ADDED", item("b", 12))])
        assert (summary(output.effects), output.step) == (["!a", "+b"], Step.CONTINUE)
        assert query(reflector)["resourceVersion"] == "12"

    def test_the_version_is_read_from_otherwise_malformed_metadata(self) -> None:
        reflector = watching()
        reflector.watch_lines([event("ADDED", {"metadata": {"name": 3, "resourceVersion": "17"}})])
        assert query(reflector)["resourceVersion"] == "17"


class TestLongLines:
    HEAD = b'{"type":"%s","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"a",'
    HEAD += b'"namespace":"default","resourceVersion":"11","annotations":{"x":"yyyyyyyyyy'

    def test_the_object_is_named_and_keeps_its_state(self) -> None:
        reflector = watching("a")
        output = reflector.watch_lines(
            [LongLine(self.HEAD % b"MODIFIED"), event("ADDED", item("b", 12))]
        )
        assert (summary(output.effects), output.step) == (["!a", "+b"], Step.CONTINUE)
        assert query(reflector)["resourceVersion"] == "12"

    def test_in_a_list_it_is_not_removed(self) -> None:
        reflector = streaming("a", "b")
        reflector.watch_lines([error(410)])
        reflector.next_request()
        output = reflector.watch_lines([LongLine(self.HEAD % b"ADDED"), bookmark(30, end=True)])
        assert summary(output.effects) == ["!a", "-b", "=1"]

    def test_the_name_suffices_for_a_deletion(self) -> None:
        assert summary(watching("a").watch_lines([LongLine(self.HEAD % b"DELETED")]).effects) == [
            "-a"
        ]

    def test_a_nameless_object_is_reported(self) -> None:
        output = watching("a").watch_lines([LongLine(b"x" * 4096)])
        assert (summary(output.effects), output.step) == (["!?"], Step.CONTINUE)


class TestNotBelieved:
    @pytest.mark.parametrize(
        ("body", "trouble"),
        [
            (b"{}", "kind: '' is not 'ServiceList'"),
            (page(kind="Pod"), "kind: 'PodList' is not 'ServiceList'"),
            (page().replace(b'"v1"', b'"v2"'), "apiVersion: 'v2' is not 'v1'"),
            (page().replace(b'"10"', b'""'), "metadata.resourceVersion: is missing"),
            (page().replace(b'"items"', b'"x"'), "items: is missing"),
        ],
    )
    def test_answers_of_another_kind_are_refused(self, body: bytes, trouble: str) -> None:
        reflector = watching("a")
        reflector.watch_lines([error(410)])
        reflector.next_request()
        output = reflector.list_page(body)
        assert (output.effects, output.step) == ([], Step.BACK_OFF)
        assert output.warning == f"unreadable list: {trouble}"
        assert query(reflector) == {"limit": "500"}

    @pytest.mark.parametrize("kind", list(Kind))
    def test_lists_of_every_kind_are_accepted(self, kind: Kind) -> None:
        reflector = Reflector(kind, watch_list=False)
        reflector.next_request()
        assert summary(reflector.list_page(page(item("a", 1), kind=kind)).effects) == ["+a", "=1"]

    def test_a_repeated_continue_token_is_an_error(self) -> None:
        reflector = listing()
        reflector.next_request()
        reflector.list_page(page(item("a", 1), token="t"))
        reflector.next_request()
        assert reflector.list_page(page(item("a", 1), token="t")).step is Step.BACK_OFF

    def test_the_end_of_initial_events_needs_a_version(self) -> None:
        reflector = Reflector(Kind.SERVICE)
        reflector.next_request()
        end = bookmark(10, end=True).replace(b'"10"', b'""')
        output = reflector.watch_lines([event("ADDED", item("a", 1)), end])
        assert (summary(output.effects), output.step) == (["+a"], Step.BACK_OFF)

    def test_the_same_unreadable_line_twice_leads_to_a_list(self) -> None:
        reflector = watching("a")
        reflector.watch_lines([b"<html>"])
        assert query(reflector)["resourceVersion"] == "10"
        reflector.watch_lines([b"<html>"])
        assert query(reflector) == {"limit": "500"}


class TestSecondLook:
    @pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.ENDPOINT_SLICE])
    def test_a_first_empty_list_is_accepted_the_second_time(self, kind: Kind) -> None:
        reflector = Reflector(kind)
        reflector.next_request()
        output = reflector.watch_lines([bookmark(10, end=True)])
        assert (output.effects, output.step) == ([], Step.CONFIRM_EMPTY)
        request = reflector.next_request()
        assert not request.watch  # a paged list without resourceVersion is a consistent read
        assert dict(request.query) == {"limit": "500"}
        assert summary(reflector.list_page(page(kind=kind)).effects) == ["=0"]

    def test_a_new_list_that_is_empty_removes_nothing_the_first_time(self) -> None:
        reflector = watching("a", "b")
        reflector.watch_lines([error(410)])
        reflector.next_request()
        output = reflector.list_page(page())
        assert (output.effects, output.step) == ([], Step.CONFIRM_EMPTY)
        reflector.next_request()
        assert summary(reflector.list_page(page(item("a", 1), version=20)).effects) == [
            "+a",
            "-b",
            "=1",
        ]

    def test_an_accepted_empty_list_may_repeat(self) -> None:
        reflector = listing()
        for _ in range(2):
            reflector.next_request()
            reflector.list_page(page())
        reflector.next_request()
        reflector.watch_lines([error(410)])
        reflector.next_request()
        assert summary(reflector.list_page(page()).effects) == ["=0"]

    def test_a_list_of_nodes_may_be_empty(self) -> None:
        reflector = Reflector(Kind.NODE, watch_list=False)
        reflector.next_request()
        assert summary(reflector.list_page(page(kind="Node")).effects) == ["=0"]


class TestLargePages:
    def test_pages_shrink_and_grow_again(self) -> None:
        reflector = listing(page_size=4)
        assert reflector.next_request().body_limit == limits.LIST_PAGE_BYTES
        assert reflector.page_too_large("too large").step is Step.CONTINUE
        assert query(reflector) == {"limit": "2"}
        reflector.list_page(page(item("a", 1), token="t"))
        assert query(reflector) == {"limit": "4", "continue": "t"}
        for _ in range(2):
            reflector.page_too_large("too large")
        assert query(reflector) == {"limit": "1", "continue": "t"}
        output = reflector.page_too_large("too large")
        assert (output.step, output.warning) == (Step.BACK_OFF, "too large")

    def test_an_unpaged_list_has_a_larger_limit(self) -> None:
        reflector = listing()
        reflector.next_request()
        reflector.list_page(page(item("a", 1), token="next"))
        reflector.next_request()
        reflector.error_response(410, b"")
        assert reflector.next_request().body_limit == limits.LIST_BYTES
        reflector.page_too_large("too large")
        assert reflector.next_request().body_limit == limits.LIST_PAGE_BYTES


@pytest.mark.parametrize("kind", ["ADDED", "DELETED", "BOOKMARK"])
def test_an_oversized_version_is_not_sent(kind: str) -> None:
    """A server may close the connection instead of answering, again and again."""
    reflector = watching("a")
    long = item("a", 10**limits.VERSION_CHARACTERS)
    reflector.watch_lines([event(kind, long)])
    assert query(reflector)["resourceVersion"] == "10"
    reflector.watch_lines([event(kind, item("a", 12))])
    assert query(reflector)["resourceVersion"] == "12"


def test_a_list_with_an_oversized_version_or_token_is_refused() -> None:
    reflector = listing()
    reflector.next_request()
    long = reflector.list_page(page(item("a", 1), version=10**limits.VERSION_CHARACTERS))
    assert long.warning == "unreadable list: metadata.resourceVersion: is too long"
    reflector.next_request()
    endless = reflector.list_page(page(item("a", 1), token="x" * (limits.CONTINUE_CHARACTERS + 1)))
    assert endless.warning == "unreadable list: metadata.continue: is too long"
    assert "continue" not in query(reflector)


def test_initial_events_with_an_oversized_version_fall_back_to_a_list() -> None:
    reflector = Reflector(Kind.SERVICE)
    reflector.next_request()
    end = bookmark(10**limits.VERSION_CHARACTERS, end=True)
    assert reflector.watch_lines([event("ADDED", item("a", 1)), end]).step is Step.BACK_OFF
    assert "watch" not in query(reflector)
