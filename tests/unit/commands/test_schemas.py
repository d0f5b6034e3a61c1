"""The JSON schemas of ``docs/schema`` are current, complete and true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.schemas import DOCUMENTS, schema_texts
from svcproxy.main import main

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "schema"
SCHEMAS = dict(schema_texts())
EXAMPLES = ("--manifests", str(ROOT / "examples"))
_DOCUMENT = re.compile(r"^class (\w+)\(Document\b", re.MULTILINE)
FLAGS = ("--", "--proxy-mode=nftables", "--hostname-override=node1")


def test_the_schemas_are_current() -> None:
    """``python -m svcproxy.commands.schemas`` writes them."""
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert written == SCHEMAS


def test_every_property_is_described() -> None:
    for name, text in SCHEMAS.items():
        for part, definition in json.loads(text)["$defs"].items():
            for key, schema in definition.get("properties", {}).items():
                described = {"description", "$ref", "anyOf"} & schema.keys() or key == "kind"
                assert described, (name, part, key)


def test_all_documents_have_schemas() -> None:
    """A new document is a line in ``DOCUMENTS``."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "svcproxy").rglob("*.py")]
    names = {name for text in sources for name in _DOCUMENT.findall(text)}
    classes = {module.partition(":")[2] or kind for kind, module in DOCUMENTS.items()}
    assert names <= classes
    assert list(DOCUMENTS) == sorted(DOCUMENTS)


@pytest.mark.parametrize("arguments", [[], ["web"], ["kube-system/dns"], ["empty"]])
def test_output_conforms_to_its_schema(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", *arguments, *EXAMPLES, "-o", "json", *FLAGS]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads(SCHEMAS[f"{found['kind']}.json"])).validate(found)


def test_the_examples_in_the_manual_conform_to_their_schemas() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = [
        json.loads(block)
        for block in re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    kinds = {example["kind"] for example in found}
    assert kinds >= {"ServiceDetail", "ServiceList"}
    for example in found:
        Draft202012Validator(json.loads(SCHEMAS[f"{example['kind']}.json"])).validate(example)
