"""Writes the JSON schemas of the documents: ``python -m svcproxy.commands.schemas``.

They go to ``docs/schema``, or to the folder that is named as an argument. A test requires that the
files of the repository are current.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from svcproxy.explain.core.documents import API_VERSION

DOCUMENTS = {
    "Bundle": "svcproxy.commands.bundle",
    "ClusterDiff": "svcproxy.kubectl.core.differences",
    "ClusterServices": "svcproxy.kubectl.core.services",
    "ClusterTop": "svcproxy.kubectl.core.totals",
    "ClusterTrace": "svcproxy.kubectl.commands",
    "Diff": "svcproxy.explain.core.diff_documents",
    "NodeStatus": "svcproxy.commands.status",
    "Rendering": "svcproxy.commands.render",
    "ServiceDetail": "svcproxy.explain.core.service_documents",
    "ServiceList": "svcproxy.explain.core.service_documents",
    "Top": "svcproxy.commands.core.top_documents",
    "Trace": "svcproxy.explain.core.trace_document",
}
"""The module of each document that a command prints, with its class if that has another name."""

_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_FOLDER = Path(__file__).parents[2] / "docs" / "schema"


def schema_texts() -> Iterator[tuple[str, str]]:
    """Yield the name of each document's file, and its contents."""
    for name, module in DOCUMENTS.items():
        path, _, other = module.partition(":")
        document = getattr(import_module(path), other or name)
        schema: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **msgspec.json.schema(document),
        }
        parts = {part.__name__: part for part in _parts(msgspec.inspect.type_info(document))}
        for title, definition in schema["$defs"].items():
            if title in parts:
                _describe(definition, parts[title])
        _require_version(schema["$defs"][document.__name__])
        yield f"{name}.json", json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _parts(found: Any) -> Iterator[type[Any]]:
    """Yield the classes of a document and of its parts, which contain themselves nowhere."""
    if isinstance(found, msgspec.inspect.StructType):
        yield found.cls
        for field in found.fields:
            yield from _parts(field.type)
    for name in ("types", "item_types"):
        for each in getattr(found, name, ()):
            yield from _parts(each)
    for name in ("item_type", "value_type"):
        if hasattr(found, name):
            yield from _parts(getattr(found, name))


def _describe(definition: dict[str, Any], documented: type) -> None:
    """Move the descriptions of attributes from the docstring to the properties."""
    described: dict[str, str] = {}
    for each in reversed(documented.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        definition["description"], _, attributes = text.partition("\n\nAttributes:\n")
        for found in _ATTRIBUTE.finditer(attributes):
            described[_camel(found[1])] = " ".join(found[2].replace("``", "`").split())
    for name, schema in definition["properties"].items():
        if name in described and "$ref" not in schema:
            schema["description"] = described[name]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


def _require_version(definition: dict[str, Any]) -> None:
    definition["properties"]["apiVersion"] |= {"const": API_VERSION}
    definition["required"] = ["kind", "apiVersion", *definition["required"][1:]]


def main() -> None:
    """Write the schemas."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schema_texts():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
