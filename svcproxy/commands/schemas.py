"""Writes the JSON schemas of the documents: ``python -m svcproxy.commands.schemas``.

They go to ``docs/schema``, or to the folder that is named as an argument. A test requires that the
files of the repository are current.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from svcproxy.explain.core.diff_documents import Diff
from svcproxy.explain.core.documents import API_VERSION, Document, Part
from svcproxy.explain.core.service_documents import ServiceDetail, ServiceList

DOCUMENTS: tuple[type[Document], ...] = (
    Diff,
    ServiceDetail,
    ServiceList,
)
"""All documents that commands print, sorted by name."""

_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_FOLDER = Path(__file__).parents[2] / "docs" / "schema"


def schema_texts() -> Iterator[tuple[str, str]]:
    """Yield the name of each document's file, and its contents."""
    for document in DOCUMENTS:
        schema: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **msgspec.json.schema(document),
        }
        found = (*_subclasses(Document), *_subclasses(Part))
        classes = {each.__name__: each for each in found}
        for name, definition in schema["$defs"].items():
            if name in classes:
                _describe(definition, classes[name])
        _require_version(schema["$defs"][document.__name__])
        yield f"{document.__name__}.json", json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


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
