"""``./dev bench``: measures svcproxy, and optionally other service proxies, on this machine."""

import argparse
import compileall
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import svcproxy
from benchmarks import guest
from benchmarks.asking import ASKERS
from benchmarks.figures import seconds
from benchmarks.kernel import MODES, Kernel
from benchmarks.measure import run
from benchmarks.population import Shape, Size
from benchmarks.report import Report, machine
from benchmarks.results import Options
from benchmarks.rule_growth import growth
from benchmarks.server import ApiServerError
from benchmarks.subject import Subject
from benchmarks.targets import LARGE
from testbed.cluster import cleanup_stale
from testbed.daemon import DaemonError
from testbed.machines import MachineError

RESULTS = Path(__file__).resolve().parent / "output"
_GROWTH = "100x5,1000x5,10000x5,50000x5"

_DESCRIPTION = """\
Measures a service proxy in a cluster of network namespaces, with real traffic. A separate process
is the API server (the real one, if KUBEBUILDER_ASSETS is the folder with kube-apiserver and etcd);
the proxy runs on the node with its default settings. For every size and variant, in a new cluster:

  cold start   from the start of the process, without rules in the kernel, until the last Service
               of every list answers a pod that connects to it continuously
  change       the endpoint of that Service moves between two pods: from the API server's event
               until the new pod answers at the cluster IP; measured again while endpoints of
               other Services change
  endurance    very many endpoints change as fast as possible: growth of memory after every
               Service has changed, most of them several times
  asked        with --asked: changes while a client asks svcproxy's admin socket for everything all
               the time and, in turns, without it
  connections  connections to random Services and, for comparison, to pod addresses
  idle         CPU time without changes; includes one periodic resync
  restart      from the start of the process, with rules in the kernel, to the end of the first sync
  rules        rules in the kernel, and rules that a new connection traverses: a packet is traced
               through the saved rules; for random choices, this is the expected number

Needs root. The machine's own network is not changed, but the legacy variant uses one lock for the
whole machine: no other program should use iptables-legacy at the same time.
"""
_EPILOG = """\
examples:
  ./dev bench                                  everything; takes about 15 minutes
  ./dev bench --modes nftables --sizes 1000x5 --starts 1 --endurance 0     a quick look
  ./dev bench --modes nftables --sizes 1000x5 --spacing 1.3 --command 'kube-proxy --kubeconfig={kubeconfig}
      --hostname-override={node} --proxy-mode={mode} --cluster-cidr={cluster_cidr}
      --kube-api-content-type=application/json --conntrack-max-per-core=0 --conntrack-min=0'
                                               kube-proxy and svcproxy

For other programs, `iptables` in PATH is the measured variant. Restarts are measured if the
program serves kube-proxy's metrics at 127.0.0.1:10249/metrics. `-` means that a program does not
report a figure.
"""


def parser() -> argparse.ArgumentParser:
    """Define the command line."""
    defaults, shape = Options(), Shape()
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("scope")
    what.add_argument(
        "--sizes",
        metavar="LIST",
        type=_sizes,
        default="1000x5,10000x5,50000x2",
        help="Services x endpoints (%(default)s)",
    )
    what.add_argument(
        "--modes", metavar="LIST", type=_modes, default=",".join(MODES), help="(%(default)s)"
    )
    what.add_argument(
        "--variants", metavar="LIST", default="", help="of iptables mode (all: nft,legacy)"
    )
    what.add_argument(
        "--command",
        action="append",
        default=[],
        metavar="LINE",
        help="another service proxy; {kubeconfig}, {node}, {cluster_cidr}, {mode} and {variant}"
        " are filled in; may be given several times",
    )
    what.add_argument("--skip-svcproxy", action="store_true", help="measure only the commands")
    what.add_argument(
        "--growth",
        metavar="LIST",
        type=_sizes,
        default=_GROWTH,
        help="sizes for which to compute the rules traversed, without a kernel (%(default)s)",
    )
    _add_shape(parser, shape)
    _add_options(parser, defaults)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, metavar="DIR", help="folder for all files"
    )
    parser.add_argument("--no-plots", action="store_true", help="write no SVG files")
    return parser


def _add_shape(parser: argparse.ArgumentParser, shape: Shape) -> None:
    group = parser.add_argument_group("the Services")
    group.add_argument(
        "--node-ports", type=float, default=shape.node_ports, help="share (%(default)s)"
    )
    group.add_argument(
        "--large", type=int, default=shape.large, help="with 1,000 endpoints (%(default)s)"
    )
    group.add_argument(
        "--headless",
        type=float,
        default=shape.headless,
        help="additional headless Services, as a share of all (%(default)s)",
    )
    group.add_argument(
        "--dialled", type=int, default=shape.dialled, help="with real endpoints (%(default)s)"
    )
    group.add_argument("--seed", type=int, default=shape.seed, help="of chance (%(default)s)")


def _add_options(parser: argparse.ArgumentParser, defaults: Options) -> None:
    group = parser.add_argument_group("how thoroughly")
    group.add_argument(
        "--thorough",
        action="store_true",
        help=f"at all sizes as at {LARGE}; otherwise there is less of everything at the others",
    )
    helps = {
        "starts": "cold starts and restarts",
        "changes": "moves of the endpoint",
        "spacing": "seconds between two of them",
        "churn": "background changes per second, for a second round of moves",
        "churned": "moves of the endpoint in the second round",
        "asked": "moves of the endpoint while a client asks svcproxy for everything all the time,"
        " and as many in between without it",
        "endurance": "changes as fast as possible, to measure the growth of memory",
        "connections": "connections to time",
        "idle": "seconds of idleness",
        "timeout": "seconds to wait for a cold start",
    }
    for name, text in helps.items():
        value = getattr(defaults, name)
        group.add_argument(
            f"--{name}", type=type(value), default=value, metavar="N", help=f"{text} (%(default)s)"
        )
    group.add_argument(
        "--asker", choices=ASKERS, default=defaults.asker, help="how it asks (%(default)s)"
    )


def _sizes(text: str) -> list[Size]:
    try:
        return [Size.parse(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list like 1000x5: {error}") from error


def _modes(text: str) -> list[str]:
    modes = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise argparse.ArgumentTypeError(f"{text!r}: there are {', '.join(MODES)}")
    return modes


def _kernels(modes: Sequence[str], variants: str) -> list[Kernel]:
    """Return the modes that this kernel supports, in all or in the requested variants."""
    wanted = set(variants.split(",")) if variants else set()
    known = {variant for mode in modes for variant in MODES[mode].variants}
    if wanted - known:
        raise ValueError(f"--variants: there is no {', '.join(sorted(wanted - known))}")
    return [
        MODES[mode](variant)
        for mode in modes
        if not guest.needed(mode)
        for variant in MODES[mode].variants
        if variant in wanted or not wanted & set(MODES[mode].variants)
    ]


def _report(arguments: argparse.Namespace) -> Report:
    kernels = _kernels(arguments.modes, arguments.variants)
    subjects = [] if arguments.skip_svcproxy else [Subject()]
    subjects += [Subject(command) for command in arguments.command]
    shape = Shape(**{name: getattr(arguments, name) for name in Shape.__struct_fields__})
    options = Options(**{name: getattr(arguments, name) for name in Options.__struct_fields__})
    given = _without(sys.argv[1:], "--output")
    report = Report(machine([kernel.version for kernel in kernels]), given)
    for size, kernel, subject in product(arguments.sizes, kernels, subjects):
        title = f"{subject.name} {kernel.mode} {kernel.variant} {size}: "
        chosen = options if size == LARGE or arguments.thorough else options.briefly()
        result = run(subject, kernel, size, shape, options=chosen, say=partial(_say, title))
        report.results.append(result)
    for mode in filter(guest.needed, arguments.modes):
        _say(f"{mode} in a guest: this kernel has none")
        said = guest.measure(mode, arguments.sizes, options, _for_guest(sys.argv[1:]), _say)
        report.results += said.results if said else []
    for size in arguments.growth:
        _say("rules passed at ", str(size))
        report.growth.append(growth(size, shape))
    return report


def _for_guest(arguments: Sequence[str]) -> list[str]:
    """Return the command line without the options that are set for the guest."""
    set_for_guest = (
        "modes",
        "output",
        "growth",
        "variants",
        "sizes",
        "endurance",
        "starts",
        "connections",
    )
    return _without(arguments, *(f"--{name}" for name in set_for_guest))


def _without(arguments: Sequence[str], *names: str) -> list[str]:
    """Return a command line without these options, each of which has a value."""
    kept = []
    words = iter(arguments)
    for word in words:
        if word in names:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    return kept


_BEGAN = time.monotonic()


def _say(*texts: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:4.0f} s] {''.join(texts)}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit status."""
    arguments = parser().parse_args(argv)
    if os.geteuid():
        print("bench: this creates network namespaces: run it as root", file=sys.stderr)
        return 1
    cleanup_stale()
    # The image contains byte code; a checkout has it only if Python may write it.
    compileall.compile_dir(str(Path(svcproxy.__file__).parent), quiet=2)
    try:
        report = _report(arguments)
    except (ValueError, ApiServerError, DaemonError, MachineError, AssertionError) as error:
        print(f"bench: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    print(report.text())
    path = report.write(arguments.output, plots=not arguments.no_plots)
    _say(f"done after {seconds(time.monotonic() - _BEGAN)}; all figures are in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
