"""The addresses of this node, and those of virtual servers on ``kube-ipvs0``, for one family."""

import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from struct import Struct

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs import link_messages as messages
from svcproxy.backends.ipvs.failing import failed
from svcproxy.backends.ipvs.link_messages import Link
from svcproxy.backends.ipvs.operations import AddressOperation, BindAddresses, Failure
from svcproxy.backends.ipvs.values import DUMMY_INTERFACE, Addresses
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.errors import MalformedError
from svcproxy.netlink.socket import ROUTE

_SIOCGIFCONF = 0x8912
_IFCONF = Struct("@iP")
_IFREQ = 16 + Struct("@LLH3B0L").size  # a name and, as the largest of several, a struct ifmap


class Links:
    """The interfaces of the network namespace of the thread that makes it; for that thread alone.

    Raises:
        BackendError: there is no route netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self._index = 0
        try:
            self._client = NetlinkClient(ROUTE)
        except OSError as error:
            raise failed("open a route netlink socket", error) from error

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def read(self) -> Addresses:
        """Read all addresses of the family, and make ``kube-ipvs0`` if it is not there.

        It is made as kube-proxy makes it, and is never set up: the addresses on it are the
        node's own nevertheless, and nobody else hears of them.

        Raises:
            BackendError: the kernel would not list them, or has no dummy interfaces.
        """
        try:
            return self._read()
        except MalformedError as error:
            raise BackendError(f"cannot understand the list of addresses: {error}") from error

    def _read(self) -> Addresses:
        links = self._links()
        if all(link.name != DUMMY_INTERFACE for link in links):
            self._create()
            links = self._links()
        self._index = next((link.number for link in links if link.name == DUMMY_INTERFACE), 0)
        request = messages.addresses_request(self.family)
        bound = messages.decode_addresses(self._dump("list addresses", request), self.family)
        return messages.arrange(links, bound, DUMMY_INTERFACE)

    def count(self) -> int:
        """How many addresses all interfaces have.

        Raises:
            BackendError: the kernel would not tell.
        """
        if self.family is IPFamily.IPV4:
            return self._count_ipv4()
        return len(self._dump("list addresses", messages.addresses_request(self.family)))

    def _count_ipv4(self) -> int:
        """The size of the list that it would give: the kernel counts them in no time."""
        request = bytearray(_IFCONF.pack(0, 0))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as made:
                fcntl.ioctl(made, _SIOCGIFCONF, request)
        except OSError as error:
            raise failed("count addresses", error) from error
        size: int = _IFCONF.unpack(request)[0]
        return size // _IFREQ

    def execute(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        """Bind and unbind addresses in order; one that fails stops none of the others.

        ``read`` comes first.

        Raises:
            BackendError: the kernel did not answer; what was done is unknown.
        """
        steps = [
            (operation, address) for operation in operations for address in operation.addresses
        ]
        try:
            refusals = self._client.execute(self._request(*step) for step in steps)
        except OSError as error:
            raise failed(f"change addresses of {DUMMY_INTERFACE}", error) from error
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
        encode = messages.bind if isinstance(operation, BindAddresses) else messages.unbind
        return encode(self._index, address)

    def remove(self) -> bool:
        """Remove ``kube-ipvs0`` with its addresses; whether it was there.

        Raises:
            BackendError: the kernel refused.
        """
        return not self._do(messages.delete_link(DUMMY_INTERFACE), "remove", errno.ENODEV)

    def _create(self) -> None:
        self._do(messages.create_dummy(DUMMY_INTERFACE), "make", errno.EEXIST)

    def _do(self, request: NetlinkRequest, what: str, tolerated: int) -> int:
        try:
            for refusal in self._client.execute([request]):
                if refusal.number == tolerated:
                    return refusal.number
                raise OSError(refusal.number, os.strerror(refusal.number))  # noqa: TRY301
        except OSError as error:
            hint = " (is the kernel module dummy missing?)" * (error.errno == errno.EOPNOTSUPP)
            raise failed(f"{what} the interface {DUMMY_INTERFACE}{hint}", error) from error
        return 0

    def _links(self) -> list[Link]:
        return list(messages.decode_links(self._dump("list links", messages.links_request())))

    def _dump(self, what: str, request: NetlinkRequest) -> list[bytes]:
        try:
            return self._client.dump(request)
        except OSError as error:
            raise failed(what, error) from error
