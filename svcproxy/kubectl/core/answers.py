"""Answers of nodes, and lists of nodes in words."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from svcproxy.commands.core.exit_codes import ExitCode

API_VERSION = "svcproxy.io/v1"
_SHOWN_NODES = 5
_EXECUTABLE = "executable file not found"

Wanted = TypeVar("Wanted")
Value = TypeVar("Value", bound=Hashable)


class Output(msgspec.Struct, frozen=True):
    """What a command printed in the pod of a node.

    Attributes:
        node: the name of the node.
        code: the exit code.
        stdout: its output.
        stderr: its errors, and those of kubectl.
    """

    node: str
    code: int
    stdout: bytes
    stderr: str = ""


class Answer(msgspec.Struct, Generic[Wanted], frozen=True):
    """The answer of a node.

    Attributes:
        node: the name of the node.
        code: the exit code of the command.
        document: what it answered; ``None`` if it did not.
        problem: why it did not answer, in a line.
    """

    node: str
    code: int
    document: Wanted | None = None
    problem: str = ""


class _Head(msgspec.Struct, rename="camel"):
    kind: str = ""
    api_version: str = ""


def answer_of(output: Output, wanted: type[Wanted], kind: str) -> Answer[Wanted]:
    """Read the document that a command printed.

    Args:
        output: the output.
        wanted: the fields that are needed; others are ignored, so that nodes of other versions
            can be compared.
        kind: the kind of the document.
    """
    node, code = output.node, output.code
    try:
        head = msgspec.json.decode(output.stdout or b"{}", type=_Head)
        if (head.kind, head.api_version) == (kind, API_VERSION):
            return Answer(node, code, msgspec.json.decode(output.stdout, type=wanted))
    except msgspec.DecodeError as error:
        return Answer(node, code, problem=f"its answer is of another version: {error}")
    if head.kind:
        text = f"its answer is of another version: {head.kind} {head.api_version}"
        return Answer(node, code, problem=text)
    return Answer(node, code, problem=_reason(output))


def _reason(output: Output) -> str:
    """Return the last line of the errors that says something."""
    lines = [line.strip() for line in output.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("command terminated with exit code")]
    if any(_EXECUTABLE in line for line in lines):
        return "its image has no svcproxy command"
    if any("unknown command" in line for line in lines):
        return "its svcproxy is of a version without this command"
    return lines[-1].removeprefix("svcproxy: ") if lines else f"exit code {output.code}"


def nodes_text(nodes: Sequence[str], total: int) -> str:
    """Return a list of nodes in words: ``all 3 nodes`` or ``node1, node2``."""
    if len(nodes) == total and total > 1:
        return "both nodes" if total == 2 else f"all {total} nodes"
    shown = ", ".join(sorted(nodes)[:_SHOWN_NODES])
    left = len(nodes) - _SHOWN_NODES
    return f"{shown} and {left} more" if left > 0 else shown


def by_value(values: Mapping[str, Value]) -> list[tuple[Value, list[str]]]:
    """Group nodes by what they say, the largest group first."""
    counts = Counter(values.values())
    groups = [
        (value, sorted(node for node, each in values.items() if each == value)) for value in counts
    ]
    return sorted(groups, key=lambda group: (-len(group[1]), group[1]))


def exit_code(codes: Mapping[str, int], *, different: bool) -> ExitCode:
    """Return the exit code for the codes of all nodes.

    Args:
        codes: the exit codes of the nodes that did not answer.
        different: whether an answer says that something differs.
    """
    if different:
        return ExitCode.DIFFERENT
    for code in (ExitCode.NOT_FOUND, ExitCode.NO_DAEMON, ExitCode.NOT_PERMITTED, ExitCode.KERNEL):
        if code in codes.values():
            return code
    return ExitCode.NO_DAEMON if codes else ExitCode.OK
