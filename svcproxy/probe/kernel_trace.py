"""The kernel's own trace of the probe, over netlink."""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Sequence

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.explain.core.nft_print import rule_text
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.explain.core.packet import UnknownRuleError
from svcproxy.limits import PROBE_TRACE_EVENTS
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.nf_tables.dump import TableDump, add_set
from svcproxy.netlink.core.nf_tables.protocol import GET_RULE, GET_SET, TABLE_OF
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.listener import listening_socket
from svcproxy.netlink.nf_tables import NfTables
from svcproxy.netlink.socket import NETFILTER
from svcproxy.probe.core.entry import Tuple
from svcproxy.probe.core.result import TraceLine
from svcproxy.probe.core.traces import (
    EVENT_GROUP,
    TraceEvent,
    decode_events,
    first_packet,
    handles,
    table_messages,
)

PREFIX = "svcproxy-probe"
"""The beginning of the table's name."""
_CHAINS = 32
"""The maximum number of chains whose rules are read to print them."""
_CHAIN_OF = 2
_XTABLES = frozenset({"nat", "filter", "mangle", "raw", "security"})
_SETTLE_SECONDS = 0.02
_NO_OWNER = {errno.EOPNOTSUPP, errno.EINVAL}
_TABLE_FAMILIES = {IPFamily.IPV4: "ip", IPFamily.IPV6: "ip6"}


class NoTraceError(Exception):
    """The kernel cannot trace the probe; the message is one line with the reason."""


class KernelTrace:
    """A table that starts the trace, and the events of it.

    The table belongs to the socket of this object: the kernel deletes it when the socket is closed,
    also when the process is killed.

    Args:
        sent: the probe.

    Raises:
        NoTraceError: the kernel has no nf_tables, no tables with an owner, or refused.
    """

    def __init__(self, sent: Tuple) -> None:
        self._sent = sent
        self._name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"
        self._stack = contextlib.ExitStack()
        try:
            self._events = self._stack.enter_context(listening_socket(NETFILTER, (EVENT_GROUP,)))
            self._tables = NfTables(sent.family)
            self._stack.callback(self._tables.close)
            self._tables.transact(table_messages(self._name, sent))
        except NetlinkError as error:
            self._stack.close()
            old = " (tables with an owner need Linux 5.12)" * (error.errno in _NO_OWNER)
            raise NoTraceError(f"the kernel cannot trace it: {error.strerror}{old}") from error

    def close(self) -> None:
        """Delete the table and stop listening."""
        self._stack.close()

    def read(self) -> list[TraceEvent]:
        """Return the events of the first packet that have arrived, and stop the trace."""
        events: list[TraceEvent] = []
        try:
            time.sleep(_SETTLE_SECONDS)  # another processor may be in the middle of the last rules
            while len(events) < PROBE_TRACE_EVENTS:
                data = self._events.receive_queued()
                if data is None:
                    break
                events += decode_events(data)
        except NetlinkError:
            pass  # events were lost: the trace is shorter
        finally:
            self.close()
        return first_packet(events[:PROBE_TRACE_EVENTS], self._name)


def lines(events: Sequence[TraceEvent], family: IPFamily) -> list[TraceLine]:
    """Return events as lines, with the text of each rule where it can be read."""
    rules = _RuleTexts(family)
    return [
        TraceLine(
            f"{event.family} {event.table}",
            event.chain,
            event.handle,
            rules.text(event),
            event.verdict,
        )
        for event in events
    ]


class _RuleTexts:
    """The texts of rules by handle; each chain is read once."""

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self._chains: dict[tuple[str, str], dict[int, str]] = {}

    def text(self, event: TraceEvent) -> str:
        if not event.handle or event.family != _TABLE_FAMILIES[self._family]:
            return ""
        key = event.table, event.chain
        if key not in self._chains and len(self._chains) < _CHAINS:
            try:
                self._chains[key] = self._read(*key)
            except (NetlinkError, BackendError, BackendUnavailable, UnknownRuleError):
                self._chains[key] = {}
        return self._chains.get(key, {}).get(event.handle, "")

    def _read(self, table: str, chain: str) -> dict[int, str]:
        tables = NfTables(self._family)
        try:
            found = handles(tables.dump(GET_RULE, text(TABLE_OF, table) + text(_CHAIN_OF, chain)))
            if table in _XTABLES:
                return self._from_iptables(table, chain, {h: p for h, (p, _) in found.items()})
            dumped = TableDump()
            for body in tables.dump(GET_SET, text(TABLE_OF, table)):
                add_set(dumped, body, table)
        finally:
            tables.close()
        shown = NftTable(_TABLE_FAMILIES[self._family], table, sets=dumped.sets)
        return {handle: rule_text(shown, body) for handle, (_, body) in found.items()}

    def _from_iptables(self, table: str, chain: str, places: dict[int, int]) -> dict[int, str]:
        listed = Iptables(Variant.NFT, self._family).list_chain(table, chain)
        rules = [line for line in listed.splitlines() if line.startswith("-A ")]
        return {h: rules[place] for h, place in places.items() if place < len(rules)}
