"""Reads manifest files: YAML or JSON to parsed objects, with line numbers for problems.

Objects take the same path as those of the API, through ``wire`` and ``parse``. This module adds only
what ``kubectl`` adds (the default namespace), and splits lists.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog
import yaml

from svcproxy import limits
from svcproxy.kube.core.validation import LABELS, SUBDOMAINS, quoted
from svcproxy.kube.core.wire import API_VERSIONS, ParseError, convert_object
from svcproxy.kube.core.yaml_limits import YamlLimitError, check_yaml
from svcproxy.kube.delivery import parse_safely
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, ObjectKey, Problem

try:
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # PyYAML built without libyaml: ten times slower, otherwise the same
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

_log = structlog.get_logger()

_CLUSTER_SCOPED = frozenset({Kind.NODE, Kind.SERVICE_CIDR})
_KINDS = {kind.value: kind for kind in Kind}


class Manifest(msgspec.Struct, frozen=True):
    """The content of a file.

    Attributes:
        objects: the valid objects; ``None`` for an object that is not to be proxied.
        failed: the keys of malformed objects.
        nameless: whether there is a malformed object without a readable name.
        problems: what is wrong with the malformed objects.
    """

    objects: dict[ObjectKey, ApiObject | None]
    failed: frozenset[ObjectKey]
    nameless: bool
    problems: tuple[Problem, ...]


class ManifestError(Exception):
    """A file cannot be read as a whole.

    Attributes:
        problem: the reason and the place.
        limit: the label of the exceeded limit in ``refusals.KNOWN``; empty if the file is malformed.
    """

    def __init__(self, problem: Problem, limit: str = "") -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.limit = limit


class _Loader(_BaseLoader):
    """A YAML loader that keeps timestamps as strings, as JSON does."""


def _limit_length(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def constructed(loader: Any, node: Any) -> Any:
        if len(node.value) > limits.NUMBER_CHARACTERS:
            reason = f"a number has more than {limits.NUMBER_CHARACTERS} characters"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return construct(loader, node)

    return constructed


_Loader.add_constructor("tag:yaml.org,2002:int", _limit_length(_BaseLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _limit_length(_BaseLoader.construct_yaml_float))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
}


class _Document(msgspec.Struct):
    """A document of a file; ``node`` is its YAML tree with line numbers, or ``None`` for JSON."""

    content: Any
    node: yaml.Node | None
    field: tuple[str | int, ...] = ()

    def line(self, field: str) -> int:
        """Return the line of a field such as ``spec.ports[0].port``, or of its nearest parent."""
        node = self.node
        if node is None:
            return 0
        for part in (*self.field, *_path_parts(field)):
            inner = _child(node, part)
            if inner is None:
                break
            node = inner
        return int(node.start_mark.line) + 1


def read_manifest(origin: str, data: bytes, annotations: frozenset[str] = frozenset()) -> Manifest:
    """Read the Services, EndpointSlices, Nodes and ServiceCIDRs of a manifest file.

    Args:
        origin: the name of the file; problems name it, and ``.json`` selects the format.
        data: the content of the file.
        annotations: the annotation keys of Services to keep.

    Raises:
        ManifestError: the file is not valid YAML or JSON, or exceeds a limit.
    """
    reader = _Reader(origin, annotations)
    documents = _json_documents if origin.endswith(".json") else _yaml_documents
    try:
        for document in documents(origin, data):
            reader.process(document)
    except RecursionError:
        raise ManifestError(
            _file_problem(origin, 0, "is nested too deeply"), "yaml_depth"
        ) from None
    failed = frozenset(reader.failed)
    return Manifest(reader.objects, failed, reader.nameless, tuple(reader.problems))


class _Reader:
    """Collects the objects and problems of one file."""

    def __init__(self, origin: str, annotations: frozenset[str]) -> None:
        self._origin = origin
        self._annotations = annotations
        self.objects: dict[ObjectKey, ApiObject | None] = {}
        self.failed: set[ObjectKey] = set()
        self.nameless = False
        self.problems: list[Problem] = []

    def process(self, document: _Document, default_kind: str = "") -> None:
        """Process a document: an object, a list of objects, or an object of another kind."""
        content = document.content
        if content is None:
            return
        if not isinstance(content, dict):
            self._reject(document, None, None, ParseError("", "is not a Kubernetes object"))
            return
        text = content.get("kind") or default_kind
        if not isinstance(text, str) or not text:
            reason = "is not a string" if text else "is missing"
            self._reject(document, None, None, ParseError("kind", reason))
            return
        if text.endswith("List"):
            self._process_items(document, text.removesuffix("List"))
            return
        kind = _KINDS.get(text)
        if kind is None or not self._is_supported(document, kind):
            _log.debug("manifest.ignored", file=self._origin, kind=text)
        else:
            self._process_object(document, kind)

    def _process_items(self, document: _Document, kind: str) -> None:
        items = document.content.get("items")
        if items is not None and not isinstance(items, list):
            self._reject(document, None, None, ParseError("items", "is not a list"))
            return
        for index, item in enumerate(items or []):
            self.process(_Document(item, document.node, (*document.field, "items", index)), kind)

    def _is_supported(self, document: _Document, kind: Kind) -> bool:
        """Whether an object is of the API group that svcproxy reads; old versions are a problem."""
        version = document.content.get("apiVersion") or API_VERSIONS[kind]
        group = API_VERSIONS[kind].rpartition("/")[0]
        if isinstance(version, str) and version.rpartition("/")[0] != group:
            return False
        if version != API_VERSIONS[kind]:
            text = quoted(version) if isinstance(version, str) else type(version).__name__
            reason = f"{text} is not supported: use {API_VERSIONS[kind]}"
            name = _name(document.content, kind)
            self._reject(document, kind, name, ParseError("apiVersion", reason))
            return False
        return True

    def _process_object(self, document: _Document, kind: Kind) -> None:
        content = document.content
        metadata = content.get("metadata")
        namespaced = kind not in _CLUSTER_SCOPED
        if namespaced and isinstance(metadata, dict) and not metadata.get("namespace"):
            content = {**content, "metadata": {**metadata, "namespace": "default"}}
        name = _name(content, kind)
        if name is not None and ((kind, name) in self.objects or (kind, name) in self.failed):
            error = ParseError("", "is in this file twice; the first one counts")
            self._report(document, kind, name, error)
            return
        try:
            parsed = parse_safely(convert_object(kind, content), self._annotations)
        except ParseError as error:
            self._reject(document, kind, name, error)
            return
        if name is not None:
            self.objects[kind, name] = parsed

    def _reject(
        self, document: _Document, kind: Kind | None, name: NamespacedName | None, error: ParseError
    ) -> None:
        if kind is not None and name is not None:
            self.failed.add((kind, name))
        else:
            self.nameless = True
        self._report(document, kind, name, error)

    def _report(
        self, document: _Document, kind: Kind | None, name: NamespacedName | None, error: ParseError
    ) -> None:
        origin = _location(self._origin, document.line(error.field))
        if name is not None and not _is_printable(name):
            name = None  # the reason quotes it
        self.problems.append(Problem(kind, name, error.field, error.reason, origin))


def _yaml_documents(origin: str, data: bytes) -> Iterator[_Document]:
    loader = None
    try:
        check_yaml(data)
        loader = _Loader(data)
        while loader.check_node():
            node = loader.get_node()
            yield _Document(loader.construct_document(node), node)
    except YamlLimitError as error:
        raise ManifestError(_file_problem(origin, error.line, error.reason), error.limit) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ManifestError(
            _file_problem(origin, line, f"not valid YAML: {error.problem}")
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(_file_problem(origin, 0, f"not valid YAML: {reason}")) from error
    finally:
        if loader is not None:
            loader.dispose()


def _json_documents(origin: str, data: bytes) -> Iterator[_Document]:
    # An upper bound for the number of values: strings may contain these characters, too
    if sum(map(data.count, (b",", b"[", b"{"))) > limits.YAML_NODES:
        reason = f"holds more than {limits.YAML_NODES} values"
        raise ManifestError(_file_problem(origin, 0, reason), "yaml_nodes")
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        raise ManifestError(
            _file_problem(origin, error.lineno, f"not valid JSON: {error.msg}")
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(_file_problem(origin, 0, "not valid JSON: it is not UTF-8")) from error
    except ValueError as error:  # a number of thousands of digits
        raise ManifestError(
            _file_problem(origin, 0, "not valid JSON: a number is too long")
        ) from error
    yield _Document(content, None)


def _file_problem(origin: str, line: int, reason: str) -> Problem:
    return Problem(None, None, "", reason, _location(origin, line))


def _location(origin: str, line: int) -> str:
    return f"{origin}:{line}" if line else origin


def _name(content: dict[str, Any], kind: Kind) -> NamespacedName | None:
    """Return an object's name from its undecoded form; ``None`` if it has none."""
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return None
    namespace = metadata.get("namespace") or "default"
    if not isinstance(namespace, str):
        return None
    if kind in _CLUSTER_SCOPED:
        namespace = ""
    return NamespacedName(namespace, metadata["name"])


def _is_printable(name: NamespacedName) -> bool:
    namespace_fits = not name.namespace or LABELS.allowed(name.namespace)
    return bool(namespace_fits and SUBDOMAINS.allowed(name.name))


def _path_parts(field: str) -> Iterator[str | int]:
    """Split a path such as ``spec.ports[0].port``."""
    for part in filter(None, field.split(".")):
        name, *indices = part.split("[")
        yield name
        for index in indices:
            digits = index.removesuffix("]")
            yield int(digits) if digits.isdigit() else digits


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return value if isinstance(value, yaml.Node) else None
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        inner = node.value[part]
        return inner if isinstance(inner, yaml.Node) else None
    return None
