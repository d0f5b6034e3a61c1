"""The Kubernetes API as a source of objects, with one thread for each kind."""

import time
from collections.abc import Collection, Mapping

from svcproxy.kube.client import Client
from svcproxy.kube.core.outputs import Selectors
from svcproxy.kube.core.parse import HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.credentials import ClientSettings
from svcproxy.kube.source import Sink, WatchState
from svcproxy.kube.watch_thread import WatchThread
from svcproxy.model.names import REQUIRED_KINDS, Kind

_STOP_SECONDS = 1.0


class KubernetesSource:
    """Watches Services, EndpointSlices, this node's Node and, on demand, ServiceCIDRs.

    Requests to an API server that cannot be reached are retried with back-off. Objects stay as they
    are meanwhile: only an answer of the API server removes an object. The selectors are
    kube-proxy's (``cmd/kube-proxy/app/server.go``).

    Args:
        settings: the API server, the credentials and the timeouts.
        node_name: the name of this node's Node object.
        kinds: the kinds to watch. Servers before Kubernetes 1.33 have no ServiceCIDRs, and the role
            may not permit reading them; the source then works without.
        watch_list: whether to request the initial state as a stream (KEP-3157). Servers without
            support for it are detected.
        page_size: the number of objects in a page of a list.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(
        self,
        settings: ClientSettings,
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
        self._threads: list[WatchThread] = []

    def start(self, sink: Sink) -> None:
        """Load the credentials and start the watch threads.

        Raises:
            SourceError: the settings, or the files that they name, are unusable.
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
            self._threads.append(
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
        for thread in self._threads:
            thread.start(sink)

    def watches(self) -> Mapping[Kind, WatchState]:
        """Return how far each kind is; safe from any thread."""
        return {thread.kind: thread.state for thread in tuple(self._threads)}

    def stop(self) -> None:
        """Stop watching, and wait at most a second for the threads.

        A thread that is establishing a connection is left to end on its own.
        """
        for thread in self._threads:
            thread.stop()
        if self._client is not None:
            self._client.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

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
