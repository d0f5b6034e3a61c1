"""``svcproxy show``: what each Service means on this node, and why."""

import argparse
from collections.abc import Mapping

from svcproxy.admin.client import AdminClient
from svcproxy.commands.connection_counts import counted_meanwhile
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.output import Output
from svcproxy.commands.service_text import write_detail, write_list
from svcproxy.commands.sources import add_source_arguments, load_view
from svcproxy.explain.core.service_detail import (
    UnknownServiceError,
    find_service,
    service_detail,
)
from svcproxy.explain.core.service_list import Observed, Selection, service_list
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.kernel_check import check
from svcproxy.explain.kernel_state import (
    FamilyKernel,
    comparisons,
    kernel_objects,
    read_kernel,
)
from svcproxy.model.names import IPFamily

EXAMPLES = """\
  svcproxy show                     all Services, a line for each address
  svcproxy show --problems          Services that are refused, in conflict or differ in the kernel
  svcproxy show default/web         one Service with all endpoints and kernel objects
  svcproxy show -o json | jq -r '.services[] | select(.problems) | .name'
  svcproxy show --manifests examples -- --proxy-mode=nftables
"""

Kernel = Mapping[IPFamily, FamilyKernel]

_SAMPLE, _LONGEST_SAMPLE = 1.0, 60.0
_FAMILIES = {"4": IPFamily.IPV4, "6": IPFamily.IPV6}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument(
        "service",
        nargs="?",
        metavar="NAMESPACE/NAME",
        help="one Service; the namespace may be left out if no other Service has the name",
    )
    parser.add_argument(
        "-n", "--namespace", default="", metavar="NAMESPACE", help="only Services of a namespace"
    )
    parser.add_argument(
        "--family", choices=tuple(_FAMILIES), help="only one IP family; default: all"
    )
    parser.add_argument("--problems", action="store_true", help="only Services with problems")
    parser.add_argument(
        "--no-kernel", action="store_true", help="do not read the kernel, which is faster"
    )
    parser.add_argument(
        "--sample",
        type=_seconds,
        default=_SAMPLE,
        metavar="SECONDS",
        help=f"how long to count new connections ({_SAMPLE:g}); 0 counts no connections",
    )
    add_source_arguments(parser)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= _LONGEST_SAMPLE:
        raise argparse.ArgumentTypeError(f"must be between 0 and {_LONGEST_SAMPLE:g}")
    return value


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``.

    A kernel that cannot be read is mentioned in the first line and is no error: what the node is
    meant to do is shown nevertheless.
    """
    view = load_view(arguments)
    kernel = None
    with counted_meanwhile(view, arguments.sample) as counting:
        if view.status is not None and not arguments.no_kernel:
            view, kernel = _read_kernel(view, arguments.socket)
    observed = Observed(
        comparisons(kernel) if kernel is not None else None, counting.connections, counting.notes
    )
    family = _FAMILIES.get(arguments.family)
    if arguments.service:
        _show_one(arguments, output, view, kernel, observed)
        return ExitCode.OK
    selection = Selection(arguments.namespace, arguments.problems, family)
    found = service_list(view, observed, selection)
    if output.as_json:
        output.document(found)
    else:
        write_list(output, found)
    return ExitCode.OK


def _read_kernel(view: NodeView, socket: str) -> tuple[NodeView, Kernel]:
    """Read the kernel; return it with the view to which it belongs.

    If it differs, objects and kernel are read again: a change may have been written in between.
    """
    kernel = read_kernel(view)
    if not any(found.differences for found in kernel.values()):
        return view, kernel
    checked = check(AdminClient(socket))
    read = {family: found.kernel for family, found in kernel.items()}
    return checked.view, {
        family: FamilyKernel(read.get(family), tuple(found.differences), found.error)
        for family, found in checked.states.items()
    }


def _show_one(
    arguments: argparse.Namespace,
    output: Output,
    view: NodeView,
    kernel: Kernel | None,
    observed: Observed,
) -> None:
    text = arguments.service
    if arguments.namespace and "/" not in text:
        text = f"{arguments.namespace}/{text}"
    try:
        name = find_service(view, text)
        objects = kernel_objects(view, name, kernel)
        found = service_detail(
            view, name, observed, objects, family=_FAMILIES.get(arguments.family)
        )
    except UnknownServiceError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from error
    if output.as_json:
        output.document(found)
    else:
        write_detail(output, found)
