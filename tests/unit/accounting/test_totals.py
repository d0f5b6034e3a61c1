"""Counters that begin again, refusals that are worth an Event, and chosen Services."""

from prometheus_client import CollectorRegistry

from svcproxy.accounting.core.chosen import ANNOTATION, ChosenServices
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Rates, Reading, rates_between
from svcproxy.accounting.core.refusal_watch import RefusalWatch
from svcproxy.accounting.core.totals import Totals
from svcproxy.accounting.counters import CountersUnreadableError
from svcproxy.accounting.service_metrics import ServiceCollector
from svcproxy.limits import SERVICE_METRICS
from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort, Verdict

V4 = IPFamily.IPV4
WEB = NamespacedName("default", "web")
KEY = FrontendKey(V4, "10.96.0.1", 80, Protocol.TCP)
OTHER = KEY._replace(address="10.96.0.2")


def port(
    name: NamespacedName = WEB, address: str = "10.96.0.1", *, marked: bool = False
) -> ServicePort:
    frontend = Frontend(FrontendKind.CLUSTER_IP, address, 80, local=False, verdict=Verdict.REJECT)
    notes = ((ANNOTATION, "true"),) if marked else ()
    port_name = ServicePortName(*name, "http", Protocol.TCP)
    return ServicePort(port_name, (frontend,), (), (), annotations=notes)


def test_totals_only_grow() -> None:
    totals: Totals[str] = Totals()
    for reading, total in ((5, 5), (7, 7), (2, 9), (2, 9), (3, 10)):
        totals.update({"a": reading})
        assert totals.of("a") == total
    totals.update({})
    totals.update({"a": 4})
    assert totals.of("a") == 14
    totals.keep([])
    assert totals.of("a") == 0


def test_rates_are_what_counters_gained() -> None:
    before = {KEY: Reading(10, 4, 0)}
    after = {KEY: Reading(30, 2, 0), OTHER: Reading(0, 0, 8)}
    assert rates_between(before, after, 2.0) == {
        KEY: Rates(10.0, 1.0, 0.0),
        OTHER: Rates(0.0, 0.0, 4.0),
    }
    assert rates_between({}, {KEY: Reading(refused=4)}, 2.0) == {KEY: Rates(None, 2.0, 0.0)}


def test_a_service_that_refuses_a_lot_is_named_once() -> None:
    watch, owners = RefusalWatch(), {KEY: WEB, OTHER: WEB}
    assert watch.update({KEY: 99}, owners) == []
    assert watch.update({KEY: 198}, owners) == []
    assert watch.update({KEY: 258, OTHER: 40}, owners) == [WEB]
    assert watch.update({KEY: 400, OTHER: 40}, owners) == []
    assert watch.update({KEY: 401}, owners) == []
    assert watch.update({KEY: 100}, owners) == [WEB]  # the element is another one
    assert watch.update({}, {}) == []
    assert watch.update({KEY: 1000}, {}) == []  # its Service was removed


def test_services_are_chosen_by_flag_and_annotation() -> None:
    chosen = ChosenServices(V4, [WEB])
    dns = NamespacedName("kube-system", "dns")
    web, marked = port(), port(dns, "10.96.0.2", marked=True)
    chosen.update({web.name: web, marked.name: marked})
    assert dict(chosen.frontends) == {KEY: web.name, OTHER: marked.name}
    plain = port(dns, "10.96.0.2")
    chosen.update({plain.name: plain})
    assert dict(chosen.frontends) == {KEY: web.name}
    chosen.update({web.name: None})
    assert not chosen.frontends


def test_the_number_of_chosen_services_is_limited() -> None:
    chosen = ChosenServices(V4, [WEB])
    names = [NamespacedName("a", f"s{n:03}") for n in range(SERVICE_METRICS + 5)]
    ports = [port(name, f"10.96.1.{n}", marked=True) for n, name in enumerate(names)]
    chosen.update({p.name: p for p in [*ports, port()]})
    assert len(chosen.frontends) == SERVICE_METRICS
    assert chosen.left_out == 6
    assert KEY in chosen.frontends
    chosen.update({p.name: None for p in ports[:6]})
    assert (len(chosen.frontends), chosen.left_out) == (SERVICE_METRICS, 0)


class Kernel:
    """Readings of two frontends of one Service port."""

    def __init__(self) -> None:
        self.readings = {KEY: Reading(5, 1, 0), OTHER: Reading(2, 0, 3)}
        self.broken = False

    def read(self, *_: object) -> dict[FrontendKey, Reading]:
        if self.broken:
            raise CountersUnreadableError("no")
        return self.readings


def test_metrics_add_up_the_frontends_of_a_service_port() -> None:
    kernel, name = Kernel(), port().name
    frontends = {KEY: name, OTHER: name}
    registry = CollectorRegistry()
    registry.register(
        ServiceCollector(lambda: {V4: frontends}, lambda: 7, connections=True, read=kernel.read)
    )
    labels = {
        "namespace": "default",
        "service": "web",
        "port": "http",
        "protocol": "TCP",
        "ip_family": "IPv4",
    }

    def value(metric: str) -> float | None:
        return registry.get_sample_value(f"svcproxy_service_{metric}_total", labels)

    assert [value(m) for m in ("connections", "refused", "dropped")] == [7.0, 1.0, 3.0]
    kernel.readings = {KEY: Reading(6, 0, 0), OTHER: Reading(2, 0, 3)}
    assert [value(m) for m in ("connections", "refused", "dropped")] == [8.0, 1.0, 3.0]
    assert registry.get_sample_value("svcproxy_service_metrics_left_out") == 7.0
    kernel.broken = True
    assert value("connections") == 8.0
    frontends.clear()
    assert value("connections") is None
