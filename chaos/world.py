"""The objects on which faults act: the cluster, the API server and the daemon."""

import json
import random
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from chaos import hostile
from chaos.processes import Generation, sample
from chaos.services import Population, Stable, Update, stable
from chaos.traffic import Probe, SteadyTraffic
from testbed import ROOT
from testbed import manifests as m
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster, Node
from testbed.daemon import Daemon

VARIANTS = ("nftables", "nft", "legacy")
READY = 120.0
"""Seconds that a start of the daemon may take."""
_TLS = ROOT / "tests" / "fakes" / "tls"
_EVENTS_KEPT = 4000


@dataclass(frozen=True)
class Settings:
    """The settings of a soak; times are in seconds."""

    seconds: float
    variant: str = "nftables"
    services: int = 500
    rate: float = 20.0
    connections: float = 12.0
    gap: float = 8.0
    seed: int = 1
    without: frozenset[str] = frozenset()
    kill_throughout: bool = False
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def nftables(self) -> bool:
        """Whether it is nftables mode."""
        return self.variant == "nftables"


class World:
    """The soak's cluster with the daemon on its first node; ``close`` removes everything.

    Args:
        settings: the settings of the soak.
        folder: a folder for temporary files.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.stopping = threading.Event()
        self._closing = ExitStack()
        self.cluster = Cluster(nodes=2, pods=3)
        self.node: Node = self.cluster.nodes[0]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_TLS / "server.pem")
        self.server = FakeApiServer(tls=context)
        self.churn_chance = random.Random(f"{settings.seed}-churn")
        self.population = Population(
            self.cluster.pods, settings.services, random.Random(f"{settings.seed}-services")
        )
        self.stable: list[Stable] = stable(self.cluster)
        self.probe = Probe(self.cluster, self.server)
        self.traffic = SteadyTraffic(self.cluster, self.stable, settings.connections)
        self.daemon = Daemon(self.node, flags=self._flags())
        self.generations: list[Generation] = []
        self.changes = 0
        self.hostile_changes = 0
        self.trouble: list[str] = []
        """Problems that no metric counts, one line each."""

    def _flags(self) -> dict[str, str | None]:
        settings = self.settings
        if settings.nftables:
            flags = {"proxy-mode": "nftables", "nodeport-addresses": "0.0.0.0/0,::/0"}
        elif settings.variant == "ipvs":
            flags = {"proxy-mode": "ipvs", "svcproxy-iptables-variant": "legacy"}
        else:
            flags = {"svcproxy-iptables-variant": settings.variant}
        return {"kubeconfig": str(self.folder / "kubeconfig"), **flags, **settings.flags}

    # --- Life cycle --------------------------------------------------------------------------

    def build(self) -> None:
        """Build the cluster, fill the API server and start the daemon."""
        self._closing.enter_context(self.cluster)
        self.cluster.serve(tcp=(8080, 8081), udp=(5353,))
        self.node.netns.call(self.server.start)
        self._closing.callback(self.server.stop)
        self._write_kubeconfig()
        self.put_node()
        self.probe.create()
        for service in self.stable:
            self.server.put_many(list(service.objects))
        for slot in self.population.slots:
            self.server.put_many(slot.objects())
        self._closing.callback(self.daemon.close)
        self.start_daemon()

    def close(self) -> None:
        """Stop and remove everything."""
        self.stopping.set()
        self._closing.close()

    def _write_kubeconfig(self) -> None:
        path = self.server.write_kubeconfig(self.folder / "kubeconfig")
        config = json.loads(path.read_text(encoding="utf-8"))
        config["clusters"][0]["cluster"]["certificate-authority"] = str(_TLS / "ca.pem")
        path.write_text(json.dumps(config), encoding="utf-8")

    # --- The daemon --------------------------------------------------------------------------

    @property
    def generation(self) -> Generation:
        """The current process of the daemon."""
        return self.generations[-1]

    def start_daemon(self) -> float:
        """Start the daemon; return the seconds until both families were synced."""
        self.daemon.start()
        self.generations.append(Generation(self.daemon.pid, time.monotonic()))
        return self.daemon.wait_ready(READY)

    def end_daemon(self, how: str, end: Callable[[], object]) -> None:
        """Stop the daemon, and keep its last metrics.

        Args:
            how: what stops it, in words.
            end: stops it.
        """
        self.look()
        self.generation.scrape(self.daemon)
        self.generation.ended_by = how
        end()

    def look(self) -> None:
        """Sample the daemon's process."""
        generation = self.generation
        seen = sample(generation.pid)
        if seen is not None:
            generation.samples.append(seen)
        elif not generation.ended_by and not self.daemon.running:
            generation.ended_by = f"itself with status {self.daemon.returncode}"
            self.trouble.append(f"the daemon ended by {generation.ended_by}")

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a counter over all processes so far, as of their last scrape."""
        return sum(g.metrics.value(name, **labels) for g in self.generations)

    # --- Objects -----------------------------------------------------------------------------

    def put_node(self) -> None:
        """Create or update the Node object."""
        node = self.node
        addresses = [node.ipv4, node.ipv6]
        self.server.put(
            m.node(
                node.name,
                addresses=addresses,
                pod_cidrs=node.pod_cidrs,
                zone=self.population.zone,
            )
        )

    def churn(self) -> None:
        """Change objects at the configured rate until the soak stops; runs in its own thread."""
        chance = self.churn_chance
        hostile_objects = {
            name: found
            for name, found in hostile.objects(self.stable[0].dial.address).items()
            if name not in self.settings.without
        }
        present: set[str] = set()
        due = time.monotonic()
        while not self.stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / self.settings.rate, time.monotonic() - 1.0)
            kind = chance.random()
            if kind < 0.02:
                self.population.move_node(chance)
                self.put_node()
            elif kind < 0.05 and hostile_objects:
                self._change_hostile(chance, hostile_objects, present)
            else:
                self.apply(self.population.change(chance))
            self.changes += 1
            if self.changes % 200 == 0:
                self.server.store.trim(_EVENTS_KEPT)
                del self.server.received[:-100]

    def apply(self, update: Update) -> None:
        """Send a change to the API server."""
        self.server.put_many(list(update.put))
        for obj in update.delete:
            meta = obj["metadata"]
            self.server.delete(obj["kind"], meta["namespace"], meta["name"])

    def _change_hostile(
        self, chance: random.Random, known: dict[str, hostile.Hostile], present: set[str]
    ) -> None:
        name = chance.choice(list(known))
        obj, encode = known[name]
        if name in present and chance.random() < 0.5:
            present.discard(name)
            meta = obj["metadata"]
            self.server.delete(obj["kind"], meta.get("namespace", ""), meta.get("name", ""))
        else:
            present.add(name)
            self.server.store.put(obj, encode)
        self.hostile_changes += 1
