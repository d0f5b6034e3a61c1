"""Demonstrates svcproxy in a small cluster of network namespaces, with real traffic.

It changes nothing outside its namespaces, and removes them at the end.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import yaml

from testbed import ROOT
from testbed.cluster import Cluster, Host, cleanup_stale
from testbed.console import Console, milliseconds
from testbed.daemon import METRICS_PORT, Daemon, DaemonError
from testbed.manifests import ManifestFolder
from testbed.netns import NetnsError
from testbed.outcomes import Answer, LoadResult, Refused, count
from testbed.traffic import TrafficError

EXAMPLES = ROOT / "examples"
WEB, WEB6, DNS, EMPTY, NODE_PORT = "10.96.0.80", "fd00:10:96::80", "10.96.0.10", "10.96.0.99", 30080
WEB_SLICES = "web-endpoints.yaml"
_LATENCY = "kubeproxy_sync_proxy_rules_duration_seconds"
_DIALS, _RATE = 60, 400


class DemoError(Exception):
    """A step observed something unexpected."""


class Demo:
    """The steps of the demo; ``stack`` cleans up after them."""

    def __init__(self, console: Console, stack: ExitStack, variant: str) -> None:
        self.console = console
        self.variant = variant
        self._stack = stack
        self.cluster = Cluster(nodes=1, pods=3)
        self.node = self.cluster.nodes[0]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="svcproxy-demo-"))
        self.manifests = ManifestFolder(Path(folder))
        flags = {"svcproxy-iptables-variant": variant}
        self.daemon = Daemon(self.node, self.manifests.path, flags=flags)

    def build(self) -> None:
        """Build the cluster and start the echo servers."""
        self._stack.enter_context(self.cluster)
        self.cluster.serve(tcp=[8080, 5353], udp=[5353])
        rows = [[h.name, h.ipv4, h.ipv6, h.netns.name] for h in self.cluster.hosts]
        self.console.table(["machine", "IPv4", "IPv6", "network namespace"], rows)

    def start(self) -> None:
        """Start the daemon on a copy of the examples."""
        for example in sorted(EXAMPLES.glob("*.yaml")):
            shutil.copy(example, self.manifests.path)
        self._stack.enter_context(self.daemon)
        self.console.quote(f"svcproxy {' '.join(self.daemon.command[3:])}")
        self.console.quote(*self.daemon.logs())

    def traffic(self) -> None:
        """Connect to every kind of frontend; show the servers and the sources that they saw."""
        pod, client, node = self.cluster.pods[0], self.cluster.client, self.node
        everyone = {p.name for p in self.cluster.pods}
        rows = [
            *self._dial(pod, "tcp", WEB, 80, everyone),
            *self._dial(pod, "udp", DNS, 53, everyone - {pod.name}),
            *self._dial(pod, "tcp", WEB6, 80, everyone),
            *self._dial(client, "tcp", node.ipv4, NODE_PORT, everyone),
            *self._dial(client, "tcp", node.ipv6, NODE_PORT, everyone),
        ]
        head = ["from", "to", "proto", "answered by", "times", "source it saw"]
        self.console.table(head, rows)
        self.console.say(
            "Servers see a pod's own address, except if a pod reaches itself; the client",
            "outside is masqueraded, for the answer must come back through the node.",
        )

    def _dial(
        self, host: Host, proto: str, address: str, port: int, expected: set[str]
    ) -> list[list[str]]:
        outcomes = host.traffic.dial(proto, address, port, _DIALS)
        what = f"{proto.upper()} from {host.name} to {_join(address, port)}"
        seen = count(outcomes)
        if set(seen) != expected:
            raise DemoError(f"{what}: expected answers of {_list(expected)}, got {dict(seen)}")
        pairs = Counter((o.server, o.source) for o in outcomes if isinstance(o, Answer))
        family6 = ":" in address
        for server, source in pairs:
            plain = host is not self.cluster.client and server != host.name
            wanted = host.ip(6 if family6 else 4) if plain else self.node.bridge_ips[family6]
            if source != wanted:
                raise DemoError(f"{what}: {server} should have seen {wanted}, but saw {source}")
        return [
            [host.name, _join(address, port), proto, server, str(times), source]
            for (server, source), times in sorted(pairs.items())
        ]

    def refuse(self) -> None:
        """Connect to a Service without endpoints: it refuses all clients."""
        for host in (self.cluster.pods[0], self.cluster.client, self.node):
            outcome = host.traffic.connect("tcp", EMPTY, 80)
            if not isinstance(outcome, Refused) or outcome.how != "icmp":
                raise DemoError(f"{host.name}: expected to be refused at {EMPTY}, got {outcome}")
            took = milliseconds(outcome.seconds)
            self.console.say(f"{host.name} -> {EMPTY}:80: ICMP port unreachable after {took}")

    def move(self) -> None:
        """Remove an endpoint and add it again, while a pod keeps connecting."""
        original = (self.manifests.path / WEB_SLICES).read_text(encoding="utf-8")
        removed = self.cluster.pods[2]
        load = self.cluster.pods[0].traffic.load("tcp", WEB, 80, rate=_RATE)
        time.sleep(1)
        gone = self.manifests.write(WEB_SLICES, _without(original, removed.ipv4))
        time.sleep(2)
        back = self.manifests.write(WEB_SLICES, original)
        time.sleep(1.5)
        result = load.stop()
        last = result.between(0, back).last_answer(removed.name)
        first = min(
            (s.at for s in result.between(back).samples if s.outcome.label == removed.name),
            default=None,
        )
        if last is None or first is None or last > gone + 1.5:
            raise DemoError(
                f"{removed.name} was not removed and added again: {dict(result.labels)}"
            )
        self._report_move(result, removed.name, max(0.0, last - gone), first - back)

    def _report_move(self, result: LoadResult, name: str, gone: float, back: float) -> None:
        paint = self.console.paint
        self.console.say(
            f"removed {name} from {WEB_SLICES}: its last answer came "
            f"{paint(milliseconds(gone), '1')} after the file was written",
            f"added it again: its first answer came {paint(milliseconds(back), '1')} after",
            f"{result.total} connections at {result.rate:.0f}/s meanwhile, "
            f"{len(result.failures)} of them failed: {dict(sorted(result.labels.items()))}",
        )
        if result.failures:
            raise DemoError(f"connections failed: {result.failures[0]}")

    def metrics(self) -> None:
        """Read the latency of the syncs from /metrics."""
        metrics = self.daemon.metrics()
        rows = []
        for family in ("IPv4", "IPv6"):
            number = metrics.value(f"{_LATENCY}_count", ip_family=family)
            mean = milliseconds(metrics.mean(_LATENCY, ip_family=family))
            half = milliseconds(metrics.quantile(_LATENCY, 0.5, ip_family=family))
            rows.append([family, str(round(number)), mean, f"<= {half}"])
            if not number:
                raise DemoError(f"{_LATENCY} counts no {family} sync")
        self.console.say(f"{_LATENCY}:")
        self.console.table(["family", "syncs", "mean", "median"], rows)

    def rules(self) -> None:
        """Show the rules of one Service."""
        tool = "iptables" if self.variant == "auto" else f"iptables-{self.variant}"
        lines = self.node.netns.run(f"{tool}-save", "-t", "nat").stdout.splitlines()
        excerpt = _rules_of("default/web", lines)
        if not any("DNAT" in line for line in excerpt):
            raise DemoError(f"{tool}-save shows no DNAT rule for default/web")
        self.console.quote(*excerpt)

    def ask(self) -> None:
        """Ask what each Service means on the node, and why."""
        self._command("show")
        if "10.96.0.99:80" not in self._command("show", "default/empty"):
            raise DemoError("svcproxy show does not know default/empty")

    def trace(self) -> None:
        """Ask what happens to a packet of a pod, and send one."""
        pod = self.cluster.pods[0]
        shown = self._command("trace", pod.ipv4, "default/web:80", "--live")
        if "DELIVERED" not in shown:
            raise DemoError("svcproxy trace does not say that the packet is delivered")

    def repair(self) -> None:
        """Delete rules with another program; ask who it was."""
        tool = "iptables" if self.variant == "auto" else f"iptables-{self.variant}"
        nat = self.node.netns.run(f"{tool}-save", "-t", "nat").stdout.splitlines()
        rule = next(line for line in nat if f"-d {WEB}/32" in line)
        self.console.say(f"another program deletes the rule of {WEB}:80 from the nat table")
        self.node.netns.run(tool, "-t", "nat", "-D", *shlex.split(rule)[1:])
        if " variant=legacy" in self.daemon.wait_log("iptables.variant"):
            # Legacy tables send no events: until the next comparison, diff shows what is missing.
            if WEB not in self._command("diff", code=1):
                raise DemoError(f"svcproxy diff does not show that the rule of {WEB} is missing")
            self.console.say("the next comparison would repair it; the other program adds it again")
            self.node.netns.run(tool, "-t", "nat", *shlex.split(rule))
            return
        self.daemon.wait_log("process=iptables")
        if "by iptables" not in self._command("diff"):
            raise DemoError("svcproxy diff does not name the program that deleted the rule")

    def _command(self, *arguments: str, code: int = 0) -> str:
        """Run one of svcproxy's commands on the node, and quote its output."""
        program = [sys.executable, "-m", "svcproxy", *arguments]
        socket = f"--socket={self.daemon.admin_socket}"
        done = self.node.netns.run(*program, socket, check=False)
        self.console.quote(f"$ svcproxy {' '.join(arguments)}", *done.stdout.splitlines(), "")
        if done.returncode != code:
            problem = f"ended with {done.returncode}: {done.stderr}"
            raise DemoError(f"svcproxy {' '.join(arguments)} {problem}")
        return done.stdout

    def stop(self) -> None:
        """Stop the daemon; its rules stay in the kernel and still carry traffic."""
        took = self.daemon.stop()
        seen = self.cluster.pods[0].traffic.burst("tcp", WEB, 80, _DIALS)
        if set(seen) != {pod.name for pod in self.cluster.pods}:
            raise DemoError(f"after the daemon's end, {WEB}:80 gave {dict(seen)}")
        self.console.say(
            f"ended {milliseconds(took)} after SIGTERM; the rules stay in the kernel:",
            f"{_DIALS} connections to {WEB}:80 answered by {dict(sorted(seen.items()))}",
        )

    def keep(self) -> None:
        """Print commands to explore the cluster, and wait for Ctrl-C."""
        node, pod, client = (
            host.netns.name for host in (self.node, self.cluster.pods[0], self.cluster.client)
        )
        ask = "exec 3<>/dev/tcp/{}; echo hello >&3; head -1 <&3"
        self.console.say(
            f"edit the manifests     {self.manifests.path}",
            f"follow the log         tail -f {self.daemon.log_file}",
            f"see the rules          ip netns exec {node} iptables-save",
            f"see the metrics        ip netns exec {node} curl -s localhost:{METRICS_PORT}/metrics",
            f"dial from a pod        ip netns exec {pod} bash -c '{ask.format(f'{WEB}/80')}'",
            f"dial from outside      ip netns exec {client} bash -c "
            f"'{ask.format(f'{self.node.ipv4}/{NODE_PORT}')}'",
            "Ctrl-C ends the demo.",
        )
        try:
            while self.daemon.running:
                time.sleep(0.2)
        except KeyboardInterrupt:
            return
        raise DemoError("the daemon ended by itself")

    def run(self, *, keep: bool) -> None:
        """Run all steps in order."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("Build a cluster: a node, three pods, a client outside", self.build),
            ("Start svcproxy on the node", self.start),
            ("Send traffic through cluster IPs and node ports", self.traffic),
            ("Connect to a Service without endpoints", self.refuse),
            ("Remove an endpoint and add it again, under load", self.move),
            ("Read the sync latency from /metrics", self.metrics),
            ("Look at the kernel's rules of the Service default/web", self.rules),
            ("Ask svcproxy about its Services", self.ask),
            ("Ask what happens to a packet, and send one", self.trace),
            ("Delete a rule with another program, and ask who it was", self.repair),
            ("Keep it running", self.keep) if keep else ("Stop svcproxy", self.stop),
        ]
        for number, (title, action) in enumerate(steps, 1):
            self.console.step(number, len(steps), title, action)


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _without(text: str, address: str) -> str:
    """Return the EndpointSlices in ``text`` without the endpoint with this address."""
    slices = list(yaml.safe_load_all(text))
    for each in slices:
        each["endpoints"] = [e for e in each["endpoints"] if address not in e["addresses"]]
    return yaml.safe_dump_all(slices, sort_keys=False)


def _rules_of(service: str, lines: list[str]) -> list[str]:
    """Return the rules that name a Service, and those of the chains to which they jump."""
    rules = [line for line in lines if line.startswith("-A ")]
    shown = [rule for rule in rules if f'"{service}:' in rule]
    chains = [rule.rpartition("-j ")[2].split()[0] for rule in shown]
    for chain in chains:
        for rule in rules:
            if rule.startswith(f"-A {chain} ") and rule not in shown:
                shown.append(rule)
                target = rule.partition(" -j ")[2].split()[0]
                if target.startswith(("KUBE-SVC-", "KUBE-SEP-")) and target not in chains:
                    chains.append(target)  # the outer loop visits these chains, too
    return shown


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    parser.add_argument(
        "--iptables-variant",
        choices=["auto", "nft", "legacy"],
        default="auto",
        help="which kernel interface of iptables svcproxy uses",
    )
    parser.add_argument("--no-color", action="store_true", help="print without colours")
    return parser.parse_args(arguments)


def _missing() -> str:
    if os.geteuid() != 0:
        return "the demo creates network namespaces: run it as root (sudo ./dev demo)"
    tools = [tool for tool in ("ip", "iptables", "ip6tables") if not shutil.which(tool)]
    return f"please install: {', '.join(tools)} (./dev setup does)" if tools else ""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return 0 if every step succeeded."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
    console = Console(color=color)
    if missing := _missing():
        console.error(missing)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job starts with SIGINT ignored
        signal.signal(number, _terminate)
    began = time.monotonic()
    status = 0
    with ExitStack() as stack:
        try:
            cleanup_stale()
            Demo(console, stack, options.iptables_variant).run(keep=options.keep)
        except KeyboardInterrupt:
            console.error("interrupted")
            status = 130
        except (DemoError, DaemonError, NetnsError, TrafficError, OSError) as error:
            console.error("\n".join([str(error), *getattr(error, "__notes__", ())]))
            status = 1
        # Only cleaning up is left; do not let a signal interrupt it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    took = milliseconds(time.monotonic() - began)
    print(f"\n{'Everything works; c' if status == 0 else 'C'}leaned up, {took} in all.")
    return status


if __name__ == "__main__":
    sys.exit(main())
