"""The commands of ``kubectl svcproxy``: ask every node, compare, print."""

import argparse
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.output import Cell, Output, Style
from svcproxy.explain.core.documents import Document
from svcproxy.kubectl.cluster import ClusterAccess, Pod
from svcproxy.kubectl.core import differences, services, totals
from svcproxy.kubectl.core.answers import Answer, answer_of, by_value, exit_code, nodes_text
from svcproxy.kubectl.core.differences import ClusterDiff, DiffSeen, NodeReport, StatusSeen
from svcproxy.kubectl.core.services import ClusterServices, ListSeen, ServiceSeen, missing_of
from svcproxy.kubectl.core.totals import ClusterRow, ClusterTop, TopSeen

_RECHECKS = 2
_RECHECK_SECONDS = 2.0
_JSON = ("-o", "json")

Wanted = TypeVar("Wanted")


class Question(msgspec.Struct, frozen=True):
    """What the user asks.

    Attributes:
        access: how to reach the pods.
        pods: the pods to ask.
        arguments: the arguments of the command.
    """

    access: ClusterAccess
    pods: Sequence[Pod]
    arguments: argparse.Namespace

    def ask(self, wanted: type[Wanted], kind: str, *command: str) -> list[Answer[Wanted]]:
        """Run a command on every node and read its document."""
        outputs = self.access.each(self.pods, lambda pod: self.access.ask(pod, (*command, *_JSON)))
        return [answer_of(output, wanted, kind) for output in outputs]


# --- diff --------------------------------------------------------------------------------------


def diff(question: Question, output: Output) -> int:
    """Say which node is behind, and whose kernel differs."""
    diffs = question.ask(DiffSeen, "Diff", "diff")
    statuses = question.ask(StatusSeen, "NodeStatus", "status")
    for _ in range(_RECHECKS):
        if not differences.suspects(statuses):
            break
        # A change may be on its way to some nodes: those that are behind stay behind.
        time.sleep(_RECHECK_SECONDS)
        statuses = question.ask(StatusSeen, "NodeStatus", "status")
    problems = differences.problems_of(statuses, diffs)
    notes = differences.notes_of(statuses)
    if output.as_json:
        output.document(_cluster_diff(problems, statuses, diffs, notes))
    else:
        _print_diff(problems, notes, output)
    missing = {answer.node: answer.code for answer in statuses if answer.document is None}
    differs = any(lines for node, lines in problems.items() if node not in missing)
    return exit_code(missing, different=differs)


def _cluster_diff(
    problems: dict[str, list[str]],
    statuses: Sequence[Answer[StatusSeen]],
    diffs: Sequence[Answer[DiffSeen]],
    notes: Sequence[str],
) -> ClusterDiff:
    about = {answer.node: answer.document for answer in statuses}
    found = {answer.node: answer.document for answer in diffs}
    return ClusterDiff(
        nodes=tuple(
            NodeReport(
                node,
                tuple(lines),
                (about[node] or StatusSeen()).version,
                (about[node] or StatusSeen()).mode,
                msgspec.to_builtins(about[node]),
                msgspec.to_builtins(found.get(node)),
            )
            for node, lines in problems.items()
        ),
        notes=tuple(notes),
    )


def _print_diff(problems: dict[str, list[str]], notes: Sequence[str], output: Output) -> None:
    agreeing = [node for node, lines in problems.items() if not lines]
    for node, lines in problems.items():
        if lines:
            output.line(Cell(node, Style.BAD), " ", "; ".join(lines))
    for note in notes:
        output.line(Cell(f"note: {note}", Style.FAINT))
    if agreeing:
        verb = "agrees" if len(agreeing) == 1 else "agree"
        total = nodes_text(agreeing, len(problems))
        output.line(Cell(f"{total} {verb}", Style.GOOD))


# --- show --------------------------------------------------------------------------------------


def show(question: Question, output: Output) -> int:
    """Show Services, and where nodes differ about them."""
    name = question.arguments.service
    found: dict[str, list[ServiceSeen]]
    answers: Sequence[Answer[Any]]
    if name:
        answers = details = question.ask(ServiceSeen, "ServiceDetail", "show", name)
        found = {each.node: [each.document] for each in details if each.document}
    else:
        answers = lists = question.ask(ListSeen, "ServiceList", "show")
        found = {each.node: each.document.services for each in lists if each.document}
    one = {node: services_[0] for node, services_ in found.items()} if name else {}
    document = ClusterServices(
        nodes=tuple(found),
        frontends=tuple(services.frontends_of(found)),
        endpoints=tuple(services.endpoints_of(one)),
        missing=missing_of(answers),
    )
    if output.as_json:
        output.document(document)
    else:
        _print_services(document, output)
    codes = {answer.node: answer.code for answer in answers if answer.document is None}
    differs = any(each.differs for each in document.frontends)
    unknown_here = len(found) > 0 and ExitCode.NOT_FOUND in codes.values()
    return exit_code(codes, different=differs or unknown_here)


def _print_services(document: ClusterServices, output: Output) -> None:
    rows = []
    for each in document.frontends:
        low, high = each.used
        used = f"{low}" if low == high else f"{low} to {high}"
        state: str | Cell = "all nodes agree"
        if each.differs:
            state = Cell("; ".join(each.differs), Style.BAD)
        elif each.unserved:
            where = nodes_text(each.unserved, len(document.nodes))
            state = Cell(f"no endpoint on {where} (policy {each.policy})", Style.WARNING)
        rows.append((each.service, each.text, each.policy, f"{used} of {each.known}", state))
    header = ("SERVICE", "FRONTEND", "POLICY", "ENDPOINTS", "NODES")
    if rows:
        output.table(rows, header)
    total = len(document.nodes)
    if document.endpoints:
        output.line()
        output.table(
            [
                (
                    each.endpoint,
                    f"on {each.node}" if each.node else "",
                    f"used by {nodes_text(each.used_by, total)}" if each.used_by else "not used",
                    "; ".join(
                        f"{reason} ({nodes_text(nodes, total)})"
                        for reason, nodes in each.reasons.items()
                    ),
                )
                for each in document.endpoints
            ],
            indent=2,
        )
    _print_missing(document.missing, output)


def _print_missing(missing: Any, output: Output) -> None:
    for node, reason in missing.items():
        output.line(Cell(node, Style.BAD), f" does not answer: {reason}")


# --- top ---------------------------------------------------------------------------------------


def top(question: Question, output: Output) -> int:
    """Show the connections of Services on all nodes together."""
    seconds = f"{question.arguments.interval:g}"
    answers = question.ask(TopSeen, "Top", "top", "--once", "--interval", seconds)
    found = {answer.node: answer.document for answer in answers if answer.document}
    document = ClusterTop(
        nodes=tuple(found), frontends=tuple(totals.rows_of(found)), missing=missing_of(answers)
    )
    if output.as_json:
        output.document(document)
    else:
        rows = [_top_row(row, len(found)) for row in document.frontends]
        header = (
            "SERVICE",
            "FRONTEND",
            "NEW/S",
            "OPEN",
            "REFUSED/S",
            "DROPPED/S",
            "BUSIEST",
            "WHY",
        )
        output.table(rows, header)
        _print_missing(document.missing, output)
    codes = {answer.node: answer.code for answer in answers if answer.document is None}
    return exit_code(codes, different=False)


def _top_row(row: ClusterRow, total: int) -> list[str]:
    busiest = max(row.nodes, key=lambda node: row.nodes[node], default="")
    why = "; ".join(f"{text} ({nodes_text(n, total)})" for text, n in row.reasons.items())
    numbers = (row.refused_per_second, row.dropped_per_second)
    shown = ["-" if number is None else f"{number:g}" for number in numbers]
    return [
        row.service,
        row.frontend,
        f"{row.new_per_second:g}",
        f"{row.open}",
        *shown,
        busiest,
        why,
    ]


# --- trace -------------------------------------------------------------------------------------


class ClusterTrace(Document, frozen=True, kw_only=True):
    """The answer of ``kubectl svcproxy trace``.

    Attributes:
        nodes: the answer of ``svcproxy trace`` on each node, with its exit code.
    """

    nodes: dict[str, Any]


def trace(question: Question, output: Output) -> int:
    """Trace a packet on one node, or on all."""
    given = question.arguments
    command = ["trace", given.source, given.to, *(["--live"] if given.live else [])]
    command += [*_JSON] if output.as_json else ["--color=never"]
    outputs = question.access.each(question.pods, lambda pod: question.access.ask(pod, command))
    codes = {each.node: each.code for each in outputs}
    if output.as_json:
        found = {
            each.node: {"exitCode": each.code, "trace": _decoded(each.stdout)} for each in outputs
        }
        output.document(ClusterTrace(nodes=found))
        return max(codes.values(), default=ExitCode.OK)
    verdicts = {}
    for each in outputs:
        lines = (each.stdout.decode("utf-8", "replace") or each.stderr).splitlines()
        if len(outputs) > 1:
            output.line(Cell(f"--- {each.node}", Style.STRONG))
        for line in lines:
            output.line(line)
        verdicts[each.node] = next((line for line in reversed(lines) if line), "no answer")
    if len(outputs) > 1:
        output.line(Cell("--- summary", Style.STRONG))
        for text, nodes in by_value(verdicts):
            output.line(f"{nodes_text(nodes, len(outputs))}: {text}")
    return max(codes.values(), default=ExitCode.OK)


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None
