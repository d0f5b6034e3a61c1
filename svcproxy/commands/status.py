"""``svcproxy status``: whether this node's daemon is up to date, and with which objects."""

import argparse
import time
from hashlib import blake2b

import msgspec

from svcproxy.admin.client import AdminClient
from svcproxy.admin.core.protocol import FamilyStatus, Status
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.output import Output
from svcproxy.explain.core.documents import Document, Part
from svcproxy.model.names import IPFamily, Kind

EXAMPLES = """\
  svcproxy status                   whether this node's daemon is up to date
  svcproxy status -o json           with a digest of its objects, to compare nodes
"""


class FamilyState(Part, frozen=True):
    """The sync loop of one IP family.

    Attributes:
        family: the IP family.
        state: ``up to date``, or what is pending or failing, in words.
        up_to_date: whether all received changes are programmed.
        synced_seconds: seconds since the last successful sync; absent before the first.
        held: the Service ports that are held back, with the reasons.
    """

    family: IPFamily
    state: str
    up_to_date: bool
    synced_seconds: float | None
    held: dict[str, str]


class WatchState(Part, frozen=True):
    """The watch of one kind of object, and the objects that the daemon has.

    Attributes:
        kind: the kind of the objects.
        resource_version: that of the last list, event or bookmark; empty for manifests.
        synced: whether the first list is complete.
        silent_seconds: seconds since the server last sent something; absent if it never did.
        objects: the number of stored objects.
        digest: a hash of them, which is equal on nodes with equal objects.
    """

    kind: Kind
    resource_version: str
    synced: bool
    silent_seconds: float | None
    objects: int
    digest: str


class NodeStatus(Document, frozen=True, kw_only=True):
    """The answer of ``svcproxy status``.

    Attributes:
        node: the name of the node.
        mode: the proxy mode.
        version: the version of the daemon.
        started_seconds: seconds since the daemon started.
        families: its IP families.
        watches: the kinds of objects that it follows.
    """

    node: str = ""
    mode: str = ""
    version: str = ""
    started_seconds: float = 0.0
    families: tuple[FamilyState, ...] = ()
    watches: tuple[WatchState, ...] = ()


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    client = AdminClient(arguments.socket)
    status = client.status()
    document = NodeStatus(
        node=status.node,
        mode=status.mode,
        version=status.version,
        started_seconds=round(status.now - status.started, 1),
        families=tuple(_family(name, about, status) for name, about in status.families.items()),
        watches=tuple(_watch(client, kind, status) for kind in status.watches or Kind),
    )
    if output.as_json:
        output.document(document)
    else:
        _print(document, output)
    return ExitCode.OK


def _family(family: IPFamily, about: FamilyStatus, status: Status) -> FamilyState:
    state = _state(about)
    since = round(status.now - about.synced, 1) if about.synced else None
    return FamilyState(family, state, state == _CURRENT, since, dict(about.held))


_CURRENT = "up to date"


def _state(about: FamilyStatus) -> str:
    if about.failing:
        return f"the last sync failed: {about.failing}"
    if not about.synced:
        return "not synced yet"
    return f"{about.pending} objects pending" if about.pending else _CURRENT


def _watch(client: AdminClient, kind: Kind, status: Status) -> WatchState:
    digest, number = blake2b(digest_size=8), 0
    for line in sorted(map(msgspec.json.encode, client.objects(kind))):
        digest.update(line + b"\n")
        number += 1
    about = status.watches.get(kind)
    return WatchState(
        kind,
        about.resource_version if about else "",
        bool(about and about.synced),
        round(status.now - about.heard, 1) if about and about.heard else None,
        number,
        digest.hexdigest(),
    )


def _print(found: NodeStatus, output: Output) -> None:
    started = time.strftime(
        "%Y-%m-%d %H:%M:%S", time.localtime(time.time() - found.started_seconds)
    )
    output.line(f"{found.node}  {found.mode}  svcproxy {found.version}, started {started}")
    rows = []
    for family in found.families:
        last = (
            "" if family.synced_seconds is None else f"last sync {family.synced_seconds:.0f} s ago"
        )
        rows.append([family.family.value, family.state, last])
        rows += [["", f"held back: {name}", reason] for name, reason in family.held.items()]
    output.table(rows, indent=2)
    output.table([_watch_row(watch) for watch in found.watches], indent=2)


def _watch_row(watch: WatchState) -> list[str]:
    version = f"rv {watch.resource_version}" if watch.resource_version else "-"
    heard = "" if watch.silent_seconds is None else f"last word {watch.silent_seconds:.0f} s ago"
    return [f"{watch.kind}s", f"{watch.objects}", version, watch.digest, heard]
