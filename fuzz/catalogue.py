"""Finds the targets, their seeds and their corpus; imports no module of svcproxy.

A target is imported when it is asked for, because Atheris instruments modules while they are
imported.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
        name: the name of its module in ``fuzz/targets``.
        check: what runs one input; an exception is a finding.
        seeds: the inputs of the module.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Yield every known input with a label: the seeds, then the files of the corpus."""
        for index, seed in enumerate(self.seeds):
            yield f"seed-{index}", seed
        folder = CORPUS / self.name
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                yield path.name, path.read_bytes()


def names() -> list[str]:
    """List the targets by name."""
    return sorted(path.stem for path in (FOLDER / "targets").glob("[!_]*.py"))


def load(name: str) -> Target:
    """Import a target.

    Raises:
        ModuleNotFoundError: there is no such target.
    """
    module = import_module(f"fuzz.targets.{name}")
    return Target(name, module.check, module.SEEDS)
