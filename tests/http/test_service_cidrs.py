"""ServiceCIDRs are watched if the API server has them, and do not delay syncing otherwise."""

import pytest

from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import REQUIRED_KINDS, Kind
from svcproxy.model.objects import ServiceCIDR
from testbed.apiserver.server import FakeApiServer
from tests.fakes import objects
from tests.fakes.sink import RecordingSink, eventually
from tests.http.conftest import Follow


def ranges(sink: RecordingSink) -> list[tuple[str, ...]]:
    return [obj.cidrs for obj in sink.objects.values() if isinstance(obj, ServiceCIDR)]


def start(server: FakeApiServer, follow: Follow) -> RecordingSink:
    settings = ClientSettings(master=server.url, initial_seconds=0.2, backoff_seconds=0.05)
    sink = follow(settings, kinds=Kind)
    sink.wait(lambda: Kind.SERVICE_CIDR in sink.syncs)
    return sink


def test_service_cidrs_are_added_changed_and_removed(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service_cidr("kubernetes", "10.96.0.0/16"))
    sink = start(server, follow)
    assert ranges(sink) == [("10.96.0.0/16",)]
    server.put(objects.service_cidr("kubernetes", "10.96.0.0/16", "FD00:10:96:0::/112"))
    sink.wait(lambda: ranges(sink) == [("10.96.0.0/16", "fd00:10:96::/112")])
    server.put(objects.service_cidr("bad", "10.96.0.0/99"))
    sink.wait(lambda: sink.problems)
    assert sink.problems[0].field == "spec.cidrs[0]"
    server.delete("ServiceCIDR", "", "kubernetes")
    sink.wait(lambda: ranges(sink) == [])


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_without_service_cidrs_does_not_delay_syncing(
    server: FakeApiServer, follow: Follow, status: int
) -> None:
    server.behaviour.refused["ServiceCIDR"] = status
    server.put(objects.service("web"))
    sink = start(server, follow)
    assert sink.names() == {"web"}
    assert sorted(sink.syncs) == sorted(Kind), "each is synced once"
    # The server is upgraded and has them now.
    server.put(objects.service_cidr())
    server.behaviour.refused.clear()
    sink.wait(lambda: ranges(sink) == [("10.96.0.0/16",)])
    assert len(sink.syncs) == len(Kind)


def test_a_request_without_an_answer_delays_syncing_only_briefly(
    server: FakeApiServer, follow: Follow
) -> None:
    server.behaviour.stall = True
    settings = ClientSettings(master=server.url, initial_seconds=0.2)
    sink = follow(settings, kinds=[Kind.SERVICE_CIDR], synced=False)
    sink.wait(lambda: sink.syncs == [Kind.SERVICE_CIDR])


def test_listed_service_cidrs_stay_when_the_server_loses_the_resource(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put(objects.service_cidr())
    sink = start(server, follow)
    server.behaviour.refused["ServiceCIDR"] = 404
    asked = server.count("ServiceCIDR", "watch")
    server.cut()
    eventually(lambda: server.count("ServiceCIDR", "watch") > asked + 2)
    assert ranges(sink) == [("10.96.0.0/16",)]


def test_service_cidrs_are_not_requested_if_not_needed(
    server: FakeApiServer, follow: Follow
) -> None:
    sink = follow()
    assert set(sink.syncs) == REQUIRED_KINDS
    assert server.count("ServiceCIDR", "watch") == 0
