"""Writes a ``Config`` as a ``KubeProxyConfiguration`` v1alpha1 that kube-proxy can read.

Every field is written, including those of the modes that are not in use. Settings that the format
does not have are left out: svcproxy's own, ``--master``, and a disabled health or metrics server,
which only a flag can request.
"""

import re
from typing import Any

import yaml

from svcproxy.config import yaml_values
from svcproxy.config.document import API_VERSION, KIND
from svcproxy.config.file_fields import FIELDS, Field, is_zero_duration
from svcproxy.config.flags import FLAGS
from svcproxy.config.model import Config
from svcproxy.config.parsing import Bind, format_duration
from svcproxy.config.yaml_values import SCALARS

_DURATIONS = frozenset(
    field
    for flag in FLAGS.values()
    if flag.placeholder == "DURATION"
    for field in flag.setting.fields
)


def as_document(config: Config) -> dict[str, Any]:
    """Return the fields of the file as JSON types."""
    document: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND}
    for path, field in FIELDS.items():
        *parents, name = path.split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = _value(config, field)
    return document


def as_yaml(config: Config) -> str:
    """Return the text of the file."""
    return yaml.dump(as_document(config), Dumper=_Dumper, default_flow_style=False)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that kube-proxy would read as another type."""


for _tag, _pattern, _first in SCALARS:
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})\\Z"), list(_first))


def _value(config: Config, field: Field) -> Any:
    if not field.setting.fields:
        return False if field.read is yaml_values.boolean else ""
    name = field.setting.fields[0]
    value = getattr(config, name)
    match name:
        case "feature_gates":
            return dict(value)
        case "vmodule":
            return [{"filePattern": pattern, "verbosity": level} for pattern, level in value]
        case "cluster_cidrs":
            return ",".join(value)
    if name in _DURATIONS:
        # kube-proxy reads zero as "not given" here; one nanosecond has the same effect as zero.
        return "1ns" if value == 0 and field.unset is is_zero_duration else format_duration(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, Bind):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, str) else value
