"""Writes the figures of benchmark runs into README.md and docs/performance.md.

``python -m benchmarks.document`` reads every JSON file in ``docs/performance/`` and replaces the
text between the markers in both pages; a test fails if the pages are out of date.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.figures import count
from benchmarks.report import Report, result_table
from benchmarks.results import Result
from benchmarks.targets import KINDS, LARGE, TARGETS, Kind, Target, figures_of, target_table

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs/performance"
PAGES = (ROOT / "README.md", ROOT / "docs/performance.md")
BEGIN, END = "<!-- figures: benchmarks/document.py -->", "<!-- end of figures -->"


def reports() -> list[tuple[str, Report]]:
    """Return the stored runs, ordered by file name."""
    return [
        (path.name, msgspec.json.decode(path.read_bytes(), type=Report))
        for path in sorted(RUNS.glob("*.json"))
    ]


def with_figures(page: Path, kept: Sequence[tuple[str, Report]]) -> str:
    """Return the text of a page, updated with the figures of these runs.

    Raises:
        ValueError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name} lacks the markers {BEGIN} and {END}")
    results = [result for _, report in kept for result in report.results]
    lines = _short(results, kept) if page.name == "README.md" else _long(results, kept)
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"


def _short(results: Sequence[Result], kept: Sequence[tuple[str, Report]]) -> list[str]:
    """Return one table: svcproxy, with kube-proxy in brackets where it was measured."""
    head = ["", *map(_name, KINDS)]
    rows = [[target.title, *(_pair(target, kind, results) for kind in KINDS)] for target in TARGETS]
    others = sorted({r.subject for r in results} - {"svcproxy"})
    beside = f"; in brackets {', '.join(others)} on the same machine" if others else ""
    day = kept[0][1].machine.date.partition(" ")[0] if kept else ""
    return [
        *_markdown([head, *rows]),
        "",
        f"{LARGE} Services x endpoints unless said, `./dev bench`, {day}{beside}.",
        *_guest_remark(results),
        "More in [`docs/performance.md`](docs/performance.md).",
    ]


def _long(results: Sequence[Result], kept: Sequence[tuple[str, Report]]) -> list[str]:
    lines = []
    for name, report in kept:
        command = shlex.join(["./dev", "bench", *report.arguments])
        lines += [f"- [`{name}`](performance/{name}): `{command}`"]
        lines += [f"  {line}" for line in report.machine.lines()]
    lines += ["", "### Targets", "", f"{LARGE} Services x endpoints unless said."]
    lines += [*_guest_remark(results), ""]
    lines += _markdown(target_table(results))
    sizes = sorted({r.size for r in results}, key=lambda size: size.services)
    for size in sizes:
        lines += ["", f"### {count(size.services)} Services x {size.endpoints} endpoints", ""]
        lines += _markdown(result_table([r for r in results if r.size == size]))
    return lines


def _guest_remark(results: Sequence[Result]) -> list[str]:
    kernels = {result.kernel for result in results if result.mode == "ipvs"}
    if kernels - {result.kernel for result in results if result.mode != "ipvs"}:
        return ["IPVS mode ran in User Mode Linux, with one processor and slow system calls."]
    return []


def _pair(target: Target, kind: Kind, results: Sequence[Result]) -> str:
    measured, others = figures_of(target, kind, results)
    text = target.text(measured) if measured is not None else "-"
    return text + "".join(f" ({target.text(value)})" for value in others)


def _name(kind: Kind) -> str:
    mode, variant = kind
    return f"{mode}, {variant}" if mode == "iptables" else mode


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]


def main() -> int:
    """Update the pages."""
    kept = reports()
    if not kept:
        print(f"document: no run is kept in {RUNS.relative_to(ROOT)}", file=sys.stderr)
        return 1
    for page in PAGES:
        page.write_text(with_figures(page, kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
