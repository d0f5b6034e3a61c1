"""``svcproxy trace FROM TO:PORT[/PROTO]``: what this node does with a packet, step by step."""

import argparse
import time
from collections.abc import Iterator

from msgspec import structs

from svcproxy.commands import live
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.core.trace_text import Row, final, steps
from svcproxy.commands.output import Cell, Output, Style
from svcproxy.commands.sources import add_source_arguments, load_view
from svcproxy.explain.core.story_types import Client, Ending
from svcproxy.explain.core.trace_arguments import (
    FROM_HELP,
    OUTSIDE,
    TO_HELP,
    QuestionError,
    UnknownNameError,
    family_of,
    parse_origin,
    parse_target,
)
from svcproxy.explain.core.trace_document import ProbeReport, Trace
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.pods import PodForbiddenError
from svcproxy.explain.trace_packet import Asked, Found, trace_packet
from svcproxy.probe.core.result import Expected, LiveRequest, LiveResult, SourceKind, Verdict

EXAMPLES = """\
  svcproxy trace default/client default/web:80     from a pod to a Service
  svcproxy trace 10.244.1.7 10.96.0.10:53/udp      from an address to an address
  svcproxy trace outside node:30080                from outside the cluster to a node port
  svcproxy trace node default/web:http --live      and send a real probe
  svcproxy trace outside default/web:80 --manifests DIR -- --proxy-mode=nftables
"""

_VERDICTS = {
    Ending.DELIVERED: Verdict.DELIVERED,
    Ending.REFUSED: Verdict.REFUSED,
    Ending.DROPPED: Verdict.DROPPED,
}
_STYLES = {Ending.DELIVERED: Style.GOOD, Ending.NOT_A_SERVICE: Style.WARNING}
_INTERFACE_CHARACTERS = 15
_PAUSE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument("origin", metavar="FROM", help=FROM_HELP)
    parser.add_argument("target", metavar="TO:PORT[/PROTO]", help=TO_HELP)
    parser.add_argument(
        "--family", choices=("4", "6"), help="the IP family, if FROM and TO leave it open"
    )
    parser.add_argument(
        "--interface",
        metavar="NAME",
        default="",
        help="the interface on which the packet arrives (that of the route to FROM)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="add each rule that matches, and all endpoints"
    )
    live.add_arguments(parser)
    add_source_arguments(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    try:
        asked = _asked(arguments)
        view, found = _traced(arguments, asked)
    except UnknownNameError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from error
    except PodForbiddenError as error:
        raise CommandError(str(error), ExitCode.NOT_PERMITTED) from error
    except QuestionError as error:
        raise CommandError(str(error)) from error
    document = found.document
    if arguments.live:
        result = live.probe(_live_request(arguments, view, found))
        document = structs.replace(document, live=_report(result))
    if output.as_json:
        output.document(document)
    else:
        _print(document, output, verbose=arguments.verbose)
    return _exit_code(document)


def _traced(arguments: argparse.Namespace, asked: Asked) -> tuple[NodeView, Found]:
    """Trace the packet; what differs counts only if it differs in a second reading after a pause.

    The daemon may have received a change since it sent its objects, or be writing one.
    """
    view = load_view(arguments)
    found = trace_packet(view, asked)
    if found.document.kernel_differs:
        time.sleep(_PAUSE_SECONDS)
        view = load_view(arguments)
        found = trace_packet(view, asked)
    return view, found


def _asked(arguments: argparse.Namespace) -> Asked:
    origin, target = parse_origin(arguments.origin), parse_target(arguments.target)
    if len(arguments.interface) > _INTERFACE_CHARACTERS:
        raise CommandError(f"--interface: longer than {_INTERFACE_CHARACTERS} characters")
    on_node = arguments.manifests is None
    if arguments.live and not on_node:
        raise CommandError("--live needs a running daemon: leave out --manifests")
    family = family_of(origin, target, arguments.family)
    return Asked(origin, target, family, arguments.interface, kernel=on_node)


def _print(document: Trace, output: Output, *, verbose: bool) -> None:
    for line in document.node.lines:
        output.line(Cell(line, Style.STRONG))
    rows = list(steps(document, verbose=verbose))
    width = max(len(label) for label, _ in rows)
    for number, (label, text) in _numbered(rows):
        output.line(f"{number:>2} {label:{width}}  {text}")
    for text in _differences(document):
        output.line(Cell(text, Style.WARNING))
    doubtful = document.kernel_differs or document.probe_differs
    style = Style.BAD if doubtful else _STYLES.get(document.verdict, Style.BAD)
    output.line(Cell(final(document), style))


def _numbered(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    number = 0
    for row in rows:
        numbered = bool(row[0]) and row[0] != "not used"
        number += numbered
        yield str(number) if numbered else "", row


def _differences(document: Trace) -> Iterator[str]:
    """Point to ``svcproxy diff`` if the kernel differs elsewhere."""
    (family,) = document.node.families
    if family.kernel_differences and not document.kernel_differs:
        yield "the kernel differs, but not for this packet: see svcproxy diff"


def _exit_code(document: Trace) -> ExitCode:
    if document.kernel_differs or document.desired.disagreements or document.probe_differs:
        return ExitCode.DIFFERENT
    match document.verdict:
        case Ending.DELIVERED:
            return ExitCode.OK
        case Ending.NOT_A_SERVICE:
            return ExitCode.NOT_FOUND
        case _:
            return ExitCode.DIFFERENT


def _live_request(arguments: argparse.Namespace, view: NodeView, found: Found) -> LiveRequest:
    packet, story = found.document.packet, found.answer.story
    kind = SourceKind.ADDRESS
    if not packet.interface:
        kind = SourceKind.NODE
    elif arguments.origin == OUTSIDE:
        kind = SourceKind.OUTSIDE
    elif story.client is Client.POD:
        kind = SourceKind.POD
    return LiveRequest(
        family=found.about.family,
        protocol=packet.protocol,
        destination=packet.destination,
        port=packet.port,
        source_kind=kind,
        source="" if arguments.origin == OUTSIDE else packet.source,
        mode=view.mode,
        iptables_variant=view.status.iptables_variant if view.status else "",
        service_port=story.port,
        settings=found.about.settings,
        expected=_expected(found),
        payload=arguments.payload,
        timeout=arguments.timeout,
        allow_affinity=arguments.allow_affinity,
    )


def _report(result: LiveResult) -> ProbeReport:
    """Return the result of the probe as a part of the document."""
    return ProbeReport(
        outcome=result.outcome.value,
        detail=result.detail,
        milliseconds=result.milliseconds,
        source=result.source,
        endpoint=result.endpoint,
        seen_source=result.seen_source,
        trace=tuple(map(str, result.trace)),
        no_trace=result.no_trace,
        agrees=result.agrees,
        disagreement=result.disagreement,
        notes=tuple(result.notes),
        left=tuple(result.left),
    )


def _expected(found: Found) -> Expected | None:
    """Return the prediction; ``None`` if the packet is no Service's, which predicts nothing."""
    story = found.answer.story
    verdict = _VERDICTS.get(story.ending)
    if verdict is None:
        return None
    kernel = found.answer.kernel
    if kernel is not None and kernel.pinned is not None:
        pinned = kernel.pinned
        return Expected(verdict, frozenset({pinned.endpoint}), pinned.masqueraded)
    kinds = {each.masqueraded for each in story.candidates}
    masqueraded = kinds.pop() if len(kinds) == 1 else None
    return Expected(verdict, frozenset(each.target for each in story.candidates), masqueraded)
