"""``svcproxy show``: what each Service means on this node, and why."""

import argparse

from svcproxy.commands.output import Output
from svcproxy.commands.sources import add_source_arguments, load_view

EXAMPLES = """\
  svcproxy show                     all Services
  svcproxy show default/web         one Service with all endpoints and kernel objects
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument("service", nargs="?", metavar="NAMESPACE/NAME", help="one Service")
    add_source_arguments(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    view = load_view(arguments)
    for about in view.families.values():
        for name, port in about.state.ports.items():
            for frontend in port.frontends:
                output.line(f"{name} {frontend.kind.value} {frontend.address}:{frontend.port}")
    return 0
