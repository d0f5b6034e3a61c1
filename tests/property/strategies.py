"""Random clusters: few names and addresses, so that objects meet, conflict and come back."""

from ipaddress import ip_address

from hypothesis import strategies as st

from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)

NODE = "node1"
_ZONES = ("a", "b")
_PORTS = (("http", Protocol.TCP), ("dns", Protocol.UDP), ("sctp", Protocol.SCTP))

names = st.sampled_from([NamespacedName("ns", f"svc{i}") for i in range(6)])
slice_names = st.sampled_from([NamespacedName("ns", f"slice{i}") for i in range(9)])


@st.composite
def services(draw: st.DrawFn) -> Service:
    name = draw(names)
    number = int(name.name[3:])
    families = draw(st.sampled_from([(4,), (6,), (4, 6), (6, 4)]))
    ipv6 = str(ip_address(f"fd00:10:96::{number}"))
    cluster_ips = [f"10.96.0.{number}" if f == 4 else ipv6 for f in families]
    if draw(st.integers(0, 9)) == 0:
        cluster_ips[0] = "10.96.0.1" if families[0] == 4 else "fd00:10:96::1"
    ports = tuple(
        ServicePortSpec(
            name=port_name,
            protocol=protocol,
            port=draw(st.sampled_from([80, 81])),
            node_port=draw(st.sampled_from([0, 0, 30080, 30081])),
        )
        for port_name, protocol in _PORTS[: draw(st.integers(1, 3))]
    )
    vips = st.lists(
        st.sampled_from(["203.0.113.1", "203.0.113.2", "fd00:203::1", "10.96.0.2"]), max_size=3
    )
    return Service(
        name=name,
        ports=ports,
        cluster_ips=tuple(cluster_ips),
        external_ips=tuple(draw(vips)),
        load_balancer_ips=tuple(draw(vips)),
        source_ranges=draw(
            st.sampled_from([(), (), ("192.168.0.0/16", "fd00:192::/32"), ("0.0.0.0/0",)])
        ),
        internal_policy_local=draw(st.booleans()),
        external_policy_local=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 0, 60])),
        health_check_node_port=draw(st.sampled_from([0, 0, 31000])),
        created=draw(st.sampled_from([1.0, 2.0])),
    )


@st.composite
def endpoint_slices(draw: st.DrawFn) -> EndpointSlice:
    family = draw(st.sampled_from(list(IPFamily)))
    prefix = "10.244.0." if family is IPFamily.IPV4 else "fd00:10:244::"
    hints = st.sampled_from([(), ("a",), ("b",), ("a", "b")])
    endpoint = st.builds(
        SliceEndpoint,
        address=st.integers(1, 30).map(lambda i: f"{prefix}{i}"),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node_name=st.sampled_from(["", NODE, "node2"]),
        zone_hints=hints,
        node_hints=st.sampled_from([(), (), (NODE,), ("node2",)]),
    )
    return EndpointSlice(
        name=draw(slice_names),
        service=draw(names),
        family=family,
        ports=tuple(
            SlicePort(name, protocol, draw(st.sampled_from([8080, 8081])))
            for name, protocol in _PORTS[: draw(st.integers(0, 3))]
        ),
        endpoints=tuple(draw(st.lists(endpoint, max_size=draw(st.sampled_from([3, 20]))))),
    )


nodes = st.builds(
    Node,
    name=st.just(NODE),
    zone=st.sampled_from(["", *_ZONES]),
    addresses=st.sampled_from([(), ("192.168.50.1", "fd00:192:168:50::1")]),
)

updates: st.SearchStrategy[ApiObject] = st.one_of(services(), endpoint_slices(), nodes)
deletions = st.one_of(
    st.tuples(st.just("service"), names),
    st.tuples(st.just("slice"), slice_names),
    st.tuples(st.just("node"), st.none()),
)
SYNC = "sync"
events = st.lists(
    st.one_of(updates, updates, updates, deletions, st.just(SYNC)), min_size=1, max_size=40
)
