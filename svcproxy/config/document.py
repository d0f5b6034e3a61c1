"""Decodes a ``KubeProxyConfiguration`` v1alpha1.

A mistake that makes kube-proxy exit, such as a wrong type, is an error. Unknown and repeated fields
are warnings, as in kube-proxy, which decodes leniently if strict decoding fails (source: loadConfig
in cmd/kube-proxy/app/options.go of 1.36).
"""

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from svcproxy.config.collect import Given, setting_message
from svcproxy.config.file_fields import FIELDS
from svcproxy.config.model import HEALTHZ_PORT, METRICS_PORT
from svcproxy.config.parsing import Bind, parse_ip, printable
from svcproxy.config.yaml_values import Loader, is_null, text_of

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"


class Document(NamedTuple):
    """The settings of a file by the path of their field, with one line for each mistake.

    ``base`` holds fields of ``Config`` whose defaults differ if there is a file.
    """

    given: dict[str, Given]
    base: dict[str, Any]
    problems: list[str]
    warnings: list[str]


def decode(data: bytes, origin: str) -> Document:
    """Decode the first document in ``data``; ``origin`` names the file in messages."""
    document = Document({}, {}, [], [])
    try:
        root, more = _first(data)
    except (yaml.YAMLError, RecursionError) as error:
        document.problems.append(f"{origin}: not YAML: {_reason(error)}")
        return document
    if more:
        document.warnings.append(f"{origin}: only its first YAML document is read")
    if not isinstance(root, yaml.MappingNode):
        document.problems.append(
            f"{origin}: it has no fields; it must begin with apiVersion: {API_VERSION}"
        )
        return document
    _Decoder(origin, document).decode(root)
    document.base.update(_base(document))
    return document


def _first(data: bytes) -> tuple[yaml.Node | None, bool]:
    """Return the first document, and whether there are more."""
    # Tabs are allowed between the tokens of JSON, but not in YAML.
    loader = Loader(data.replace(b"\t", b" ") if data.lstrip()[:1] == b"{" else data)
    try:
        return (loader.get_node() if loader.check_node() else None), loader.check_node()
    finally:
        loader.dispose()


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


class _Decoder:
    def __init__(self, origin: str, document: Document) -> None:
        self._origin = origin
        self._document = document
        self._structs = {
            path.rsplit(".", depth)[0] for path in FIELDS for depth in range(1, path.count(".") + 1)
        }

    def decode(self, root: yaml.MappingNode) -> None:
        fields = dict(self._fields(root, ""))
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
            node = fields.pop(name, None)
            if node is None or node.value != wanted:
                text = "" if node is None else text_of(node)
                self._problem(name, text, f"must be {wanted}")
        self._struct(fields, "")

    def _struct(self, fields: dict[str, yaml.Node], parent: str) -> None:
        for name, node in fields.items():
            path = f"{parent}{name}"
            if path in FIELDS:
                self._leaf(path, node)
            elif path not in self._structs:
                self._warn(path, f"unknown field, ignored; {_nearest(path)}")
            elif isinstance(node, yaml.MappingNode):
                self._struct(dict(self._fields(node, f"{path}.")), f"{path}.")
            elif not is_null(node):
                self._problem(path, text_of(node), "must be a map of fields")

    def _leaf(self, path: str, node: yaml.Node) -> None:
        field = FIELDS[path]
        try:
            text = field.read(node)
        except ValueError as error:
            self._problem(path, text_of(node), str(error))
            return
        if text is not None and not field.unset(text):
            self._document.given[path] = Given(f"{self._origin}: {path}", text, field.setting)

    def _fields(self, node: yaml.MappingNode, parent: str) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the fields of a map, those of merged maps first; of repeated ones the last counts."""
        for key, value in node.value:
            if key.tag.endswith(":merge"):
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in merged:
                    if isinstance(one, yaml.MappingNode):
                        yield from ((str(k.value), v) for k, v in one.value)
        seen = set()
        for key, value in node.value:
            if not key.tag.endswith(":merge"):
                name = text_of(key)
                if name in seen:
                    self._warn(f"{parent}{name}", "given twice; the last one counts")
                seen.add(name)
                yield name, value

    def _problem(self, path: str, text: str, reason: str) -> None:
        self._document.problems.append(setting_message(f"{self._origin}: {path}", text, reason))

    def _warn(self, path: str, reason: str) -> None:
        self._document.warnings.append(f"{self._origin}: {printable(path)}: {reason}")


def _nearest(path: str) -> str:
    # Wrong upper and lower case is the usual mistake, and difflib compares letters exactly.
    lower = {known.lower(): known for known in FIELDS}
    near = difflib.get_close_matches(path.lower(), lower, n=1)
    return f"did you mean {lower[near[0]]}?" if near else "leave it out"


def _base(document: Document) -> Iterator[tuple[str, Any]]:
    """Yield the defaults that a file changes (v1alpha1/defaults.go of kube-proxy 1.36)."""
    yield "ipvs_min_sync_period", 0.0
    if "bindAddress" in document.given:
        try:
            address = parse_ip(document.given["bindAddress"].text)
        except ValueError:
            return  # reported when the field is parsed
        if ":" in address:
            yield "healthz_bind_address", Bind("::", HEALTHZ_PORT)
            yield "metrics_bind_address", Bind("::1", METRICS_PORT)
