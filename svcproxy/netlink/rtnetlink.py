"""Interface addresses over rtnetlink, for one family: the node's own and those of a dummy link."""

import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from struct import Struct

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import rtnetlink as messages
from svcproxy.netlink.core.kernel_objects import Addresses
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.operations import AddressOperation, BindAddresses, Failure
from svcproxy.netlink.core.rtnetlink import Link
from svcproxy.netlink.errors import NetlinkError, RequestRefusedError, doing
from svcproxy.netlink.socket import ROUTE

_SIOCGIFCONF = 0x8912
_IFCONF = Struct("@iP")
_IFREQ = 16 + Struct("@LLH3B0L").size  # the interface name and a union, largest member: ifmap


class RouteSocket:
    """A socket to the interfaces in the network namespace of the calling thread.

    Only the thread that creates it may use it.

    Args:
        family: the family of the addresses.
        dummy: the name of the dummy interface whose addresses ``execute`` changes.

    Raises:
        NetlinkError: the kernel has no route netlink.
    """

    def __init__(self, family: IPFamily, dummy: str) -> None:
        self.family = family
        self._dummy = dummy
        self._index = 0
        with doing("open a route netlink socket"):
            self._client = NetlinkClient(ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def read(self) -> Addresses:
        """List all addresses of the family; create the dummy interface if it does not exist.

        The interface is created as kube-proxy creates it, and is never set up: its addresses are
        local to the node nevertheless, and the node does not announce them.

        Raises:
            NetlinkError: the kernel did not list them, or cannot create dummy interfaces.
        """
        links = self._links()
        if all(link.name != self._dummy for link in links):
            self._create()
            links = self._links()
        self._index = next((link.ifindex for link in links if link.name == self._dummy), 0)
        request = messages.addresses_request(self.family)
        bound = messages.decode_addresses(self._dump("list addresses", request), self.family)
        return messages.classify_addresses(links, bound, self._dummy)

    def count(self) -> int:
        """Count the addresses of all interfaces.

        Raises:
            NetlinkError: the kernel refused.
        """
        if self.family is IPFamily.IPV4:
            return self._count_ipv4()
        return len(self._dump("list addresses", messages.addresses_request(self.family)))

    def _count_ipv4(self) -> int:
        """Count IPv4 addresses by the size of the list that SIOCGIFCONF would return.

        With 10,000 addresses this takes 0.06 ms of CPU time; listing them takes 11 ms.
        """
        request = bytearray(_IFCONF.pack(0, 0))
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        with doing("count addresses"), socket.socket(socket.AF_INET, kind) as created:
            fcntl.ioctl(created, _SIOCGIFCONF, request)
        size: int = _IFCONF.unpack(request)[0]
        return size // _IFREQ

    def execute(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        """Execute operations in order; a failed operation does not stop the others.

        ``read`` must have been called before.

        Returns:
            One failure for each address that the kernel refused.

        Raises:
            NetlinkError: the kernel did not answer; the effect of the operations is unknown.
        """
        steps = [
            (operation, address) for operation in operations for address in operation.addresses
        ]
        with doing(f"change addresses of {self._dummy}"):
            refusals = self._client.execute(self._request(*step) for step in steps)
        failures = []
        for refusal in refusals:
            operation, address = steps[refusal.position]
            binding = isinstance(operation, BindAddresses)
            if refusal.number != (errno.EEXIST if binding else errno.EADDRNOTAVAIL):
                reason = os.strerror(refusal.number)
                single = operation._replace(addresses=(address,))
                failures.append(Failure(single, refusal.number, reason))
        return failures

    def _request(self, operation: AddressOperation, address: str) -> NetlinkRequest:
        if isinstance(operation, BindAddresses):
            return messages.add_address_request(self._index, address)
        return messages.delete_address_request(self._index, address)

    def remove(self) -> bool:
        """Delete the dummy interface with its addresses; return whether it existed.

        Raises:
            NetlinkError: the kernel refused.
        """
        return not self._change(messages.delete_link_request(self._dummy), "delete", errno.ENODEV)

    def _create(self) -> None:
        self._change(messages.create_dummy_request(self._dummy), "create", errno.EEXIST)

    def _change(self, request: NetlinkRequest, action: str, tolerated: int) -> int:
        """Send a request about the interface; return 0, or the tolerated error number."""
        try:
            for refusal in self._client.execute([request]):
                if refusal.number == tolerated:
                    return refusal.number
                raise RequestRefusedError(refusal.number)
        except NetlinkError as error:
            hint = " (is the kernel module dummy missing?)" * (error.errno == errno.EOPNOTSUPP)
            error.add_context(f"cannot {action} the interface {self._dummy}{hint}")
            raise
        return 0

    def _links(self) -> list[Link]:
        return list(messages.decode_links(self._dump("list links", messages.links_request())))

    def _dump(self, action: str, request: NetlinkRequest) -> list[bytes]:
        with doing(action):
            return self._client.dump(request)
