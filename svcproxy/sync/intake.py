"""Storing the objects of the inbox in the desired state."""

import time

from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    ObjectKey,
    Service,
    ServiceCIDR,
)
from svcproxy.state.desired import DesiredState
from svcproxy.sync.core.not_ready import NotReady
from svcproxy.sync.inbox import Batch
from svcproxy.sync.report import Reporter


class Intake:
    """Stores batches of objects; an exception loses no object.

    Args:
        state: the desired state of the family.
        reporter: reports objects that cannot be stored.

    Attributes:
        not_ready: since when endpoints are not ready.
    """

    def __init__(self, state: DesiredState, reporter: Reporter) -> None:
        self._state = state
        self._reporter = reporter
        self.not_ready = NotReady()
        self._interrupted: Batch | None = None

    @property
    def interrupted(self) -> bool:
        """Whether an exception interrupted ``store``: the next call stores that batch as well."""
        return self._interrupted is not None

    def store(self, batch: Batch) -> Batch:
        """Store a batch, and return it, joined with one that an exception interrupted."""
        if self._interrupted is not None:
            batch = self._interrupted.then(batch)
        self._interrupted = batch
        for key, obj in batch.objects.items():
            try:
                if key[0] is Kind.ENDPOINT_SLICE:
                    self._note_readiness(key[1], obj)
                _store(self._state, key, obj)
            except MemoryError:  # The object is not to blame: store the whole batch again.
                raise
            except Exception as error:  # noqa: BLE001 - reported; it affects only this object
                self._reporter.defect("object", error, kind=key[0], name=str(key[1]))
        self._interrupted = None
        return batch

    def _note_readiness(self, name: NamespacedName, obj: ApiObject | None) -> None:
        before = self._state.slices.get(name)
        if before is not None:
            after = obj if isinstance(obj, EndpointSlice) else None
            self.not_ready.changed(before, after, time.time())


def _store(state: DesiredState, key: ObjectKey, obj: ApiObject | None) -> None:
    kind, name = key
    match obj:
        case Service():
            state.update_service(obj)
        case EndpointSlice():
            state.update_slice(obj)
        case Node():
            state.update_node(obj)
        case ServiceCIDR():
            state.update_service_cidr(obj)
        case None if kind is Kind.SERVICE:
            state.delete_service(name)
        case None if kind is Kind.ENDPOINT_SLICE:
            state.delete_slice(name)
        case None if kind is Kind.SERVICE_CIDR:
            state.delete_service_cidr(name)
        case None:
            state.update_node(None)
