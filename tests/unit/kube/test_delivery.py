import json

import pytest

from svcproxy.kube import delivery as delivery_module
from svcproxy.kube.core import decoding, wire
from svcproxy.kube.delivery import Delivery
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import Problem
from tests.fakes import objects
from tests.fakes.objects import Obj
from tests.fakes.sink import RecordingSink

WEB = NamespacedName("default", "web")


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def delivery(sink: RecordingSink) -> Delivery:
    return Delivery(Kind.SERVICE, sink)


def decoded(obj: Obj) -> wire.WireObject:
    return decoding.decode_object(Kind.SERVICE, json.dumps(obj).encode())


GOOD = decoded(objects.service())
HEADLESS = decoded(objects.service(clusterIP="None"))
BAD = decoded(objects.service(ports=[{"port": 0}]))
WORSE = decoded(objects.service(ports=[{"port": 70000}]))


def test_objects_are_parsed_and_passed_on(sink: RecordingSink, delivery: Delivery) -> None:
    delivery.changed(WEB, GOOD)
    delivery.flush()
    assert sink.names() == {"web"}
    delivery.removed(WEB)
    delivery.flush()
    assert sink.deletes == [(Kind.SERVICE, WEB)]


def test_an_object_that_is_no_longer_to_be_proxied_is_deleted(
    sink: RecordingSink, delivery: Delivery
) -> None:
    delivery.changed(WEB, GOOD)
    delivery.flush()
    delivery.changed(WEB, HEADLESS)
    delivery.flush()
    assert sink.objects == {}


def test_objects_are_delivered_once(sink: RecordingSink, delivery: Delivery) -> None:
    delivery.changed(WEB, GOOD)
    sink.fail_next_update = ZeroDivisionError("oops")
    with pytest.raises(ZeroDivisionError):
        delivery.flush()
    delivery.flush()
    assert sink.updates == []


def test_a_problem_is_reported_once_and_the_last_valid_state_stays(
    sink: RecordingSink, delivery: Delivery
) -> None:
    delivery.changed(WEB, GOOD)
    delivery.changed(WEB, BAD)
    delivery.changed(WEB, BAD)
    delivery.flush()
    assert sink.problems == [Problem(Kind.SERVICE, WEB, "spec.ports[0].port", "0 is not a port")]
    assert sink.names() == {"web"}
    assert sink.deletes == []


@pytest.mark.parametrize("cure", ["good", "gone", "headless", "worse"])
def test_a_problem_is_reported_again_after_another_state(
    cure: str, sink: RecordingSink, delivery: Delivery
) -> None:
    delivery.changed(WEB, BAD)
    if cure == "gone":
        delivery.removed(WEB)
    else:
        delivery.changed(WEB, {"good": GOOD, "headless": HEADLESS, "worse": WORSE}[cure])
    delivery.changed(WEB, BAD)
    assert sink.problems[0] == sink.problems[-1]
    assert len(sink.problems) == (3 if cure == "worse" else 2)


def test_problems_of_nameless_objects_are_reported(sink: RecordingSink, delivery: Delivery) -> None:
    delivery.malformed(None, "metadata", "expected object, got int")
    assert [str(problem) for problem in sink.problems] == [
        "Service: metadata: expected object, got int"
    ]


def test_a_defect_in_the_parser_affects_one_object(
    sink: RecordingSink, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(_obj: object, _annotations: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(delivery_module, "parse_object", defective)
    delivery.changed(WEB, GOOD)
    assert sink.problems[0].reason == "internal error: ZeroDivisionError: oops"


def test_running_out_of_memory_is_not_reported_as_a_problem_of_the_object(
    delivery: Delivery, sink: RecordingSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_obj: object, _annotations: object) -> None:
        raise MemoryError

    monkeypatch.setattr(delivery_module, "parse_object", exhausted)
    with pytest.raises(MemoryError):
        delivery.changed(WEB, GOOD)
    assert sink.problems == []
