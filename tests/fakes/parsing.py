"""Parses objects as those of the API are parsed: JSON, wire types, model."""

import json

import pytest

from svcproxy.kube.core import decoding
from svcproxy.kube.core.parse import ParseError, parse_object
from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject
from tests.fakes.objects import Obj


def parsed(obj: Obj, annotations: frozenset[str] = frozenset()) -> ApiObject | None:
    decoded = decoding.decode_object(Kind(obj["kind"]), json.dumps(obj).encode())
    return parse_object(decoded, annotations)


def problem_of(obj: Obj) -> str:
    with pytest.raises(ParseError) as caught:
        parsed(obj)
    return str(caught.value)
