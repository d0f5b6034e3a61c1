"""One run: a cluster with its API server, a service proxy on the node, and all measurements."""

import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.asking import asking
from benchmarks.kernel import Kernel
from benchmarks.population import PORT, SERVICE_RANGE, TARGET_PORT, Population, Shape, Size
from benchmarks.realapi import RealApi
from benchmarks.results import Change, ConnectionTimes, Memory, Options, Received, Result
from benchmarks.rule_growth import nat_rules, rules_traversed
from benchmarks.server import ApiServer
from benchmarks.subject import Running, Subject
from benchmarks.usage import Usage, usage
from testbed import netns
from testbed.cluster import Cluster, Pod
from testbed.metrics import Metrics
from testbed.outcomes import Answer
from testbed.waiting import eventually

_SERVING_PODS = 5
_DIAL_TIMEOUT = 0.25
_PAUSE = 0.001  # between two connections; shorter pauses would take CPU time from the program
_PARTS = 10  # of an endurance run; memory is sampled after each
_TURN = 50  # changes with or without a client that asks
_QUIET_SECONDS = 1.0
_QUIET_PATIENCE = 600.0
_OPERATIONS = "svcproxy_kernel_operations_total"
_CHANGES = "svcproxy_change_duration_seconds"
_SYNCS = "kubeproxy_sync_partial_proxy_rules_duration_seconds"

Say = Callable[[str], None]


def run(
    subject: Subject,
    kernel: Kernel,
    size: Size,
    shape: Shape,
    *,
    options: Options,
    say: Say,
) -> Result:
    """Measure one program in one variant at one size, in a cluster of its own.

    Raises:
        DaemonError: the program exited.
        AssertionError: it was not ready in time.
    """
    result = Result(
        subject.name, kernel.mode, kernel.variant, size, shape, options, platform.release()
    )
    with TemporaryDirectory(prefix="svcproxy-bench-") as name, Cluster(1, 6) as cluster:
        folder = Path(name)
        cluster.serve(tcp=(TARGET_PORT,))
        node = cluster.nodes[0]
        # Until a Service is programmed, connections to it fail immediately instead of timing out.
        netns.ip_batch([f"route add unreachable {SERVICE_RANGE}"], node.netns.name)
        pods = cluster.pods[:_SERVING_PODS]
        population = Population(size, [pod.ipv4 for pod in pods], shape)
        say(f"{population.size} objects for the API server")
        assets = os.environ.get("KUBEBUILDER_ASSETS", "")
        with (
            RealApi(node, population, folder, Path(assets))
            if assets
            else ApiServer(node, population, folder)
        ) as api:
            running = Running(subject, kernel, node, folder)
            try:
                _Run(cluster, population, api, running, kernel).measure(result, say)
            except BaseException as error:
                error.add_note("\n".join(["its log:", *running.daemon.logs()[-20:]]))
                raise
            finally:
                running.daemon.close()
    return result


class _Run:
    """One run: the state that its measurements share."""

    def __init__(
        self,
        cluster: Cluster,
        population: Population,
        api: ApiServer | RealApi,
        running: Running,
        kernel: Kernel,
    ) -> None:
        self.node = cluster.nodes[0]
        self.pods: list[Pod] = cluster.pods[:_SERVING_PODS]
        # A pod as the client, the usual case; it is no endpoint, so no connection is a hairpin.
        self.client = cluster.pods[_SERVING_PODS]
        self.population = population
        self.api = api
        self.running = running
        self.kernel = kernel
        self.folder = running.folder
        self._moved = 0

    def measure(self, result: Result, say: Say) -> None:
        """Run all measurements, in an order in which none disturbs a later one."""
        options = result.options
        bare = self._to_pods(options.connections)
        for number in range(options.starts):
            say(f"cold start {number + 1} of {options.starts}")
            self._cold_start(result, first=number == 0)
        started = self._settled()
        started_bytes = self.api.sent()
        self._look_at_rules(result)
        say(f"{options.changes} changes")
        self._changes(result)
        received = self._churn(result, say)
        self._asking(result, say)
        result.received = Received(started_bytes // options.starts, received)
        endurance = self._endurance(result, say)
        say(f"{options.connections} connections")
        result.connections = self._connections(options.connections, bare)
        say(f"idle for {options.idle:g} s")
        result.idle_cpu = self._idle(options.idle)
        last = self.usage()
        result.memory = Memory(started.rss, last.rss, last.peak, *endurance)
        for number in range(options.starts):
            say(f"restart {number + 1} of {options.starts}")
            self._restart(result)

    def usage(self) -> Usage:
        """Return the resources that the program has used so far."""
        self.running.check()
        return usage(self.running.daemon.pid)

    def _cold_start(self, result: Result, *, first: bool) -> None:
        if not first:
            self.running.stop()
            self.kernel.clear(self.node.netns)
        self.running.start()
        ended = self._answered(None, result.options.timeout)
        result.cold_start.append(ended - self.running.began)
        result.cold_start_cpu.append(self._settled().cpu)

    def _answered(self, pod: Pod | None, timeout: float) -> float:
        """Connect to the probe until this pod (or any) answers; return the time of the answer."""
        address = self.population.probe.address
        deadline = time.monotonic() + timeout
        while True:
            outcome = self.client.traffic.connect("tcp", address, PORT, timeout=_DIAL_TIMEOUT)
            now = time.monotonic()
            if isinstance(outcome, Answer) and (pod is None or outcome.server == pod.name):
                return now
            self.running.check()
            if now > deadline:
                raise AssertionError(f"the probe did not answer within {timeout:g} s: {outcome}")
            time.sleep(_PAUSE)

    def _settled(self) -> Usage:
        """Wait until the program has been idle for a while; return its usage then."""
        seen = [self.usage()]

        def quiet() -> bool:
            seen.append(self.usage())
            if seen[-1].cpu - seen[0].cpu > 0.015:
                seen[:] = seen[-1:]
            return seen[-1].at - seen[0].at >= _QUIET_SECONDS

        eventually(quiet, "a quiet moment", timeout=_QUIET_PATIENCE, every=0.1)
        return seen[-1]

    def _look_at_rules(self, result: Result) -> None:
        saved = self.kernel.saved(self.node.netns)
        counted = self.kernel.count(saved)
        result.rules, result.chains = counted.rules, counted.chains
        if self.kernel.mode == "iptables":  # the count is about iptables rules
            result.rules_traversed = rules_traversed(nat_rules(saved), self.population)

    def _changes(self, result: Result) -> None:
        options = result.options
        before = self.running.metrics()
        self._settled()
        result.changes = [
            self._change(number, options, options.spacing) for number in range(options.changes)
        ]
        after = self.running.metrics()
        result.change_operations = _operations(before, after, options.changes)
        result.change_sync = _mean(_SYNCS, before, after)
        result.change_applied = _mean(_CHANGES, before, after, ip_family="IPv4", stage="total")

    def _change(self, number: int, options: Options, spacing: float) -> Change:
        """Move the probe's endpoint between two pods, and wait until the new one answers."""
        used = self.usage()
        pod = self.pods[1 - number % 2]
        began = self.api.put(self.population.probe_slice(pod.ipv4))
        ended = self._answered(pod, options.timeout)
        time.sleep(spacing)
        return Change(ended - began, self.usage().cpu - used.cpu)

    def _churn(self, result: Result, say: Say) -> float:
        """Measure changes during background churn; return the bytes received per change."""
        options = result.options
        if not (options.churn and options.churned):
            return 0.0
        say(f"{options.churned} changes while {options.churn:g} a second happen elsewhere")
        self.api.churn(options.churn)
        chance = random.Random(options.churned)
        time.sleep(1.0)
        before, sent = self.usage(), self.api.sent()
        try:
            # Random times: regular ones could be in phase with the program's sync period.
            result.churned = [
                self._change(result.options.changes + number, options, chance.uniform(0.0, 0.1))
                for number in range(options.churned)
            ]
            after, sent = self.usage(), self.api.sent() - sent
        finally:
            self.api.churn(0)
        result.churned_cpu = (after.cpu - before.cpu) / (after.at - before.at)
        return sent / (options.churned + options.churn * (after.at - before.at))

    def _asking(self, result: Result, say: Say) -> None:
        """Measure changes with and without a client that asks for everything, in turns."""
        options = result.options
        if not options.asked or self.running.daemon.flags == {}:
            return
        say(f"{options.asked} changes while a client asks for everything, and as many without")
        socket, rounds = self.running.daemon.admin_socket, self.folder / "rounds"
        self._moved = options.changes + len(result.churned) - 1
        seconds = 0.0
        while len(result.asked) < options.asked:
            number = min(_TURN, options.asked - len(result.asked))
            result.not_asked += self._spaced_changes(number, options)
            with asking(self.node.netns, socket, options.asker, rounds):
                began, before = time.monotonic(), rounds.stat().st_size
                result.asked += self._spaced_changes(number, options)
                seconds += time.monotonic() - began
                result.answered = (result.answered or 0.0) + rounds.stat().st_size - before
        result.answered = (result.answered or 0.0) / seconds

    def _spaced_changes(self, number: int, options: Options) -> list[Change]:
        """Move the endpoint at random times, so that they are in phase with nothing."""
        chance = random.Random(number)
        changes = []
        for _ in range(number):
            self._moved += 1
            changes.append(self._change(self._moved, options, chance.uniform(0.02, 0.12)))
        return changes

    def _endurance(self, result: Result, say: Say) -> tuple[int, int, list[int]]:
        """Change very many endpoints; return the resident memory before, after and in between."""
        options = result.options
        if not options.endurance:
            return 0, 0, []
        say(f"{options.endurance} changes elsewhere, as fast as possible")
        # The first replacement of an object fragments memory; later changes reuse the gaps.
        self.api.storm(options.warm_up(result.size))
        before = self._settled()
        meanwhile = []
        for _ in range(_PARTS):
            self.api.storm(options.endurance // _PARTS)
            meanwhile.append(self.usage().rss)
        # The change of the probe follows all of them in the watch.
        pod = self.pods[1]
        self.api.put(self.population.probe_slice(self.pods[0].ipv4))
        self._answered(self.pods[0], options.timeout)
        self.api.put(self.population.probe_slice(pod.ipv4))
        self._answered(pod, options.timeout)
        after = self._settled()
        result.endurance_seconds = after.at - before.at
        return before.rss, after.rss, meanwhile

    def _connections(self, number: int, bare: list[float]) -> ConnectionTimes:
        """Time connections to random Services and, for comparison, to pod addresses."""
        chance = random.Random(0)
        traffic, targets = self.client.traffic, self.population.dialled
        direct, service = [], []
        for _ in range(number):
            direct += self._to_pods(1)
            outcome = traffic.connect("tcp", chance.choice(targets).address, PORT)
            assert isinstance(outcome, Answer), f"a Service did not answer: {outcome}"
            service.append(outcome.seconds)
        return ConnectionTimes(bare, direct, service)

    def _to_pods(self, number: int) -> list[float]:
        """Time connections to pod addresses."""
        dial = self.client.traffic.connect
        pods = random.choices(self.pods, k=number)
        return [dial("tcp", pod.ipv4, TARGET_PORT).seconds for pod in pods]

    def _idle(self, wanted: float) -> float:
        before = self._settled()
        time.sleep(wanted)
        after = self.usage()
        return (after.cpu - before.cpu) / (after.at - before.at)

    def _restart(self, result: Result) -> None:
        if not self.running.tells_syncs:
            return
        self.running.stop()
        self.running.start()
        result.restart.append(self.running.first_sync(result.options.timeout))
        self._settled()
        result.restart_operations = _operations(Metrics(), self.running.metrics(), 1)


def _mean(name: str, before: Metrics, after: Metrics, **labels: str) -> float | None:
    """Return the mean of a histogram between two scrapes; ``None`` without observations."""
    grown = [
        after.value(f"{name}_{part}", **labels) - before.value(f"{name}_{part}", **labels)
        for part in ("sum", "count")
    ]
    return grown[0] / grown[1] if grown[1] else None


def _operations(before: Metrics, after: Metrics, changes: int) -> dict[str, float] | None:
    """Return kernel operations per change for IPv4; ``None`` if the program has no such metric."""
    if "svcproxy_build_info" not in after:
        return None
    return {
        sample.labels["operation"]: grown / changes
        for sample in after.matching(_OPERATIONS, ip_family="IPv4")
        if (grown := sample.value - before.value(_OPERATIONS, **sample.labels))
    }
