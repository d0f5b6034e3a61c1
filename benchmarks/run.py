"""``./dev bench``: measure svcproxy, and other service proxies beside it, on this machine."""

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
Measures a service proxy on a cluster made of network namespaces, with real traffic. An API
server in a process of its own serves the Services over HTTP (a real one, if KUBEBUILDER_ASSETS
names the folder with kube-apiserver and etcd); the proxy runs on the node with its default
settings. For every size and variant, in a fresh cluster:

  cold start   from the start of the process, with no rules there, until the Service that comes
               last in every list answers a pod that dials it all the time
  change       its one endpoint moves between two pods; from the API server's event until the
               other pod answers through the cluster IP; then once more while endpoints of other
               Services change all the time
  endurance    very many endpoints change as fast as possible; what that does to memory, from
               the moment at which every Service has been changed, most of them several times
  connections  to random Services, and to pods by their own addresses for comparison
  idle         CPU time while nothing changes; has one periodic comparison in it
  restart      from the start of the process, with the rules there, to the end of its first sync
  rules        those in the kernel, and those that a new connection passes: a packet is followed
               through the saved rules; where these choose at random, that is the expected number

Needs root. The machine's own network is not touched, but the legacy variant has one lock for
the whole machine: nothing else should use iptables-legacy meanwhile.
"""
_EPILOG = """\
examples:
  ./dev bench                                  everything; takes about a quarter of an hour
  ./dev bench --modes nftables --sizes 1000x5 --starts 1 --endurance 0     a quick look
  ./dev bench --modes nftables --sizes 1000x5 --spacing 1.3 --command 'kube-proxy --kubeconfig={kubeconfig}
      --hostname-override={node} --proxy-mode={mode} --cluster-cidr={cluster_cidr}
      --kube-api-content-type=application/json --conntrack-max-per-core=0 --conntrack-min=0'
                                               kube-proxy beside svcproxy

Other programs find `iptables` in PATH as the variant that is measured. Restarts are measured
where /metrics on 127.0.0.1:10249 has kube-proxy's names. `-` stands for what a program does not
tell.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults, shape = Options(), Shape()
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is measured")
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
        help="sizes for which to compute the rules passed, without a kernel (%(default)s)",
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
        help="headless Services more, as a share (%(default)s)",
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
        "churn": "changes elsewhere per second, for another round of moves",
        "churned": "moves of the endpoint in that round",
        "endurance": "changes elsewhere to see memory grow or not",
        "connections": "connections to time",
        "idle": "seconds of idleness",
        "timeout": "seconds to wait for a cold start",
    }
    for name, text in helps.items():
        value = getattr(defaults, name)
        group.add_argument(
            f"--{name}", type=type(value), default=value, metavar="N", help=f"{text} (%(default)s)"
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
    """The modes that this kernel has, each in all its variants or in those that are wanted."""
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
    """The command line without what the guest is told anyway."""
    told = ("modes", "output", "growth", "variants", "sizes", "endurance", "starts", "connections")
    return _without(arguments, *(f"--{name}" for name in told))


def _without(arguments: Sequence[str], *names: str) -> list[str]:
    """A command line without these options, which have a value each."""
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
    """Measure, print and write; give the exit code."""
    arguments = parser().parse_args(argv)
    if os.geteuid():
        print("bench: it makes network namespaces: run it as root", file=sys.stderr)
        return 1
    cleanup_stale()
    # The image ships byte code; a checkout has it only where Python may write it.
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
