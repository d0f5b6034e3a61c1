import contextlib
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.core.parse import ParseError
from svcproxy.model.names import Kind
from tests.fakes import objects
from tests.fakes.objects import Obj
from tests.fakes.parsing import parsed

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | st.sampled_from(["", "None", "Local", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(
    kind=st.sampled_from(Kind),
    field=st.sampled_from(
        ["spec", "status", "ports", "endpoints", "addressType", "metadata",
         "spec.ports", "spec.clusterIP", "spec.clusterIPs", "spec.podCIDRs", "spec.taints", "spec.cidrs",
         "spec.sessionAffinityConfig", "status.loadBalancer", "status.addresses",
         "metadata.labels", "metadata.annotations", "metadata.creationTimestamp"]
    ),
    value=_values,
)  # fmt: skip
def test_any_field_value_is_parsed_or_refused(kind: Kind, field: str, value: object) -> None:
    makers: dict[Kind, Callable[[], Obj]] = {
        Kind.SERVICE: objects.service,
        Kind.ENDPOINT_SLICE: objects.endpoint_slice,
        Kind.NODE: objects.node,
        Kind.SERVICE_CIDR: objects.service_cidr,
    }
    obj: Obj = makers[kind]()
    first, _, second = field.partition(".")
    if second:
        obj[first] = {**obj.get(first, {}), second: value}
    else:
        obj[first] = value
    with contextlib.suppress(ParseError):
        parsed(obj)
