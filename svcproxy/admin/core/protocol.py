"""The messages of the admin socket.

HTTP/1.1 on a Unix socket that only root may open; bodies are JSON. Both sides are the same program,
so the values are svcproxy's own types. ``PROTOCOL`` grows with each incompatible change; ``Status``
carries it, and a client of another version stops there.

``GET /v1/status``
    a ``Status``.
``GET /v1/objects?kind=Service``
    the stored objects of a kind, as lines; each line is a JSON array of objects. The daemon goes on
    meanwhile: each object is sent in a state that it had during the answer. If the ``revision`` of
    each family is even, and the same before and after several answers, they belong together.
``GET /v1/objects?kind=Service&service=NAMESPACE/NAME``
    that Service and all that claim one of its addresses; with the kind EndpointSlice, its slices.
    From these and the Node, ``DesiredState`` computes the same ports of that Service as from all
    objects. What other Services become cannot be computed from them.
``GET /v1/repairs?after=N&wait=SECONDS``
    a ``Repairs``: those with a higher number than ``after``. With ``wait``, the daemon answers when
    there is one, or after that time. Few clients may wait at once; others get status 503.
``GET /v1/log``
    the last lines of the log, as text.
``GET /v1/metrics``
    the metrics in the text format of Prometheus.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from svcproxy.model.names import IPFamily, Kind

PROTOCOL = 1
"""The version of the messages."""

SOCKET = "/run/svcproxy/admin.sock"
"""The default path of the socket."""


class WatchStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of the watch of one kind of object.

    Attributes:
        resource_version: that of the last list, event or bookmark; empty before the first list and
            for manifests.
        synced: whether the first list is complete.
        heard: when the server last sent something, in seconds since 1970; 0 if never.
    """

    resource_version: str = ""
    synced: bool = False
    heard: float = 0.0


class FamilyStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of the sync loop of one IP family.

    Attributes:
        synced: when the last successful sync ended, in seconds since 1970; 0 before the first.
        pending: the number of objects that wait for a sync.
        failing: the reason of the last sync if it failed; empty otherwise.
        held: Service ports that are held back, each with the reason: the kernel refused them, or
            planning failed.
        settings: what the rules depend on besides Service ports: the backend's ``Settings`` with
            what it found out about the kernel, as plain values. Empty before the first sync.
        revision: grows when the loop begins and when it ends to store objects.
    """

    synced: float = 0.0
    pending: int = 0
    failing: str = ""
    held: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}
    revision: int = 0


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of the daemon.

    Attributes:
        protocol: ``PROTOCOL`` of the daemon.
        version: the version of the daemon.
        pid: its process ID.
        node: the name of the node.
        mode: the proxy mode.
        started: when the daemon started, in seconds since 1970.
        now: the daemon's time, in seconds since 1970.
        flags: the effective flags, by name without dashes.
        families: the state of each IP family that is served.
        watches: the state of each watch.
        iptables_variant: the variant of iptables (``nft``, ``legacy``) that holds rules of the mode;
            empty if none does.
        not_ready_since: when each endpoint that is not ready stopped being ready, in seconds since
            1970, by Service (``namespace/name``) and address. Endpoints that were not ready when
            the daemon first saw them are absent.
    """

    protocol: int
    version: str
    pid: int
    node: str
    mode: str
    started: float
    now: float
    flags: Mapping[str, str] = {}
    families: Mapping[IPFamily, FamilyStatus] = {}
    watches: Mapping[Kind, WatchStatus] = {}
    iptables_variant: str = ""
    not_ready_since: Mapping[str, Mapping[str, float]] = {}


class Repair(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sync that restored kernel objects which another program had changed.

    Attributes:
        number: counts the repairs of this daemon from 1.
        at: when it was done, in seconds since 1970.
        family: the IP family.
        operations: the number of kernel operations by kind, for example ``chain_written``.
        process: the name of the program that made the change; empty if unknown.
        pid: its process ID; 0 if unknown.
        seconds: from the event that reported the change, or from the begin of the resync that found
            it, until the repair was done.
        reported: whether an event of the kernel reported the change; otherwise a resync found it.
    """

    number: int
    at: float
    family: IPFamily
    operations: Mapping[str, int]
    process: str = ""
    pid: int = 0
    seconds: float = 0.0
    reported: bool = False


class Repairs(msgspec.Struct, frozen=True):
    """The last repairs, oldest first; ``total`` is the number of the last one."""

    total: int
    repairs: tuple[Repair, ...] = ()
