"""Import rules that apply to every new module without a list to maintain.

The contracts in pyproject.toml forbid planning code the clock, threads, logs and I/O of other
packages. Here, what it imports from svcproxy itself is limited to modules under the same rule, so
that it cannot make anything that does I/O, nor name its type for an argument.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = "svcproxy.backends"
CONTRACT = "The functional core has no clock, thread, log, metric or I/O"
(SOURCES,) = (
    contract["source_modules"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    if contract["name"] == CONTRACT
)
PURE = (
    *(source.removesuffix(".**") for source in SOURCES if "core" not in source),
    "svcproxy.netlink.errors",  # exceptions; their texts come from os.strerror
)
"""The pure modules and packages outside ``core`` folders."""


def is_pure(module: str) -> bool:
    return ".core." in f"{module}." or any(f"{module}.".startswith(f"{pure}.") for pure in PURE)


def modules(package: str) -> Iterator[str]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str) -> Iterator[str]:
    """The modules of svcproxy that a module imports, also inside functions."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(package), names=names):
                for alias in names:
                    child = ROOT.joinpath(*package.split("."), alias.name)
                    is_module = child.is_dir() or child.with_suffix(".py").exists()
                    yield f"{package}.{alias.name}" if is_module else package


@pytest.mark.parametrize("module", [name for name in modules("svcproxy") if is_pure(name)])
def test_planning_code_imports_only_planning_code_and_values(module: str) -> None:
    own = {name for name in imported(module) if name.startswith("svcproxy.")}
    assert {name for name in own if not is_pure(name)} == set()


@pytest.mark.parametrize("module", list(modules("svcproxy/backends")))
def test_a_backend_is_imported_by_its_own_modules_only(module: str) -> None:
    """What two modes share is not in a folder with a mode."""
    backends = {path.parent.name for path in (ROOT / "svcproxy/backends").glob("*/mode.py")}
    used = {name.split(".")[2] for name in imported(module) if name.startswith(f"{BACKENDS}.")}
    own = module.removeprefix(f"{BACKENDS}").strip(".").split(".")[0]
    assert used & backends <= {own}
