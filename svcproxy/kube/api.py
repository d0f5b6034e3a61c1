"""The Kubernetes API as a source of objects: one thread for each kind."""

import time
from collections.abc import Collection

from svcproxy.kube.client import Client
from svcproxy.kube.core.outputs import Selectors
from svcproxy.kube.core.parse import HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.credentials import ConnectionSettings
from svcproxy.kube.source import Sink
from svcproxy.kube.watch_thread import WatchThread
from svcproxy.model.names import REQUIRED_KINDS, Kind

_STOP_SECONDS = 1.0


class KubernetesSource:
    """Follows Services, EndpointSlices, one Node and perhaps ServiceCIDRs of an API server.

    An API server that cannot be reached is asked again and again and changes nothing; only what
    it says removes an object. What is asked for is what kube-proxy asks for
    (``cmd/kube-proxy/app/server.go``).

    Args:
        settings: where the API server is and how to prove who we are.
        node_name: the name of this node's Node object.
        kinds: what to follow. Servers before Kubernetes 1.33 have no ServiceCIDRs; there, and
            where the role does not allow to read them, the source goes on without.
        watch_list: whether to ask for initial states as streams (KEP-3157); servers that do not
            know them are found out.
        page_size: how many objects a page of a list holds.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        node_name: str,
        kinds: Collection[Kind] = REQUIRED_KINDS,
        *,
        watch_list: bool = True,
        page_size: int = 500,
        annotations: frozenset[str] = frozenset(),
    ) -> None:
        self._settings = settings
        self._node_name = node_name
        self._kinds = kinds
        self._watch_list = watch_list
        self._page_size = page_size
        self._annotations = annotations
        self._client: Client | None = None
        self._followers: list[WatchThread] = []

    def start(self, sink: Sink) -> None:
        """Load the credentials and begin following in threads of our own.

        Raises:
            SourceError: the settings or the files they name are of no use.
        """
        client = Client(self._settings)
        self._client = client
        resources = self._resources()
        for kind in sorted(self._kinds):
            path, selectors = resources[kind]
            reflector = Reflector(
                kind, selectors, page_size=self._page_size, watch_list=self._watch_list
            )
            required = kind in REQUIRED_KINDS
            self._followers.append(
                WatchThread(
                    kind,
                    path,
                    reflector,
                    client,
                    self._settings,
                    required=required,
                    annotations=self._annotations,
                )
            )
        for follower in self._followers:
            follower.start(sink)

    def stop(self) -> None:
        """Stop following, and wait at most a second for the threads.

        A thread that is still establishing a connection is left to end by itself.
        """
        for follower in self._followers:
            follower.stop()
        if self._client is not None:
            self._client.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))

    def _resources(self) -> dict[Kind, tuple[str, Selectors]]:
        return {
            Kind.SERVICE: (
                "/api/v1/services",
                Selectors(
                    labels=f"!{SERVICE_PROXY_NAME_LABEL}",
                    fields="spec.clusterIP!=None",
                    optional=True,
                ),
            ),
            Kind.ENDPOINT_SLICE: (
                "/apis/discovery.k8s.io/v1/endpointslices",
                Selectors(labels=f"!{HEADLESS_LABEL}"),
            ),
            Kind.NODE: ("/api/v1/nodes", Selectors(fields=f"metadata.name={self._node_name}")),
            Kind.SERVICE_CIDR: ("/apis/networking.k8s.io/v1/servicecidrs", Selectors()),
        }
