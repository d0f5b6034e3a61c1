"""The ipsets in which endpoints remember their clients, for session affinity.

pyroute2 does it: a set is created with an endpoint of a Service with affinity and destroyed with
it, some 0.2 ms each, and nothing on the way of other changes. It is imported when the first set is
needed: 35 MB that most nodes can do without.
"""

import socket
from collections.abc import Iterable
from typing import Any

from svcproxy.backends.base import BackendError
from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.model.names import IPFamily

CLIENTS = 65536
"""How many clients an endpoint remembers; xt_recent remembers 100."""
_FIRST_BUCKETS = 64
_DEFAULT_SECONDS = 10800
_HEADERS_ONLY = 4
"""``IPSET_FLAG_LIST_HEADER``: sets are listed without their elements."""
_FAMILIES = {IPFamily.IPV4: socket.AF_INET, IPFamily.IPV6: socket.AF_INET6}


class AffinitySets:
    """Creates, lists and destroys the sets of one family; used by one thread."""

    def __init__(self, family: IPFamily) -> None:
        self._family = _FAMILIES[family]

    def names(self) -> frozenset[str]:
        """The names of the family's sets that belong to endpoint chains.

        Raises:
            BackendError: the kernel has no ipset, or will not list them.
        """
        with _ipset() as ipset:
            headers = _checked(lambda: list(ipset.list(flags=_HEADERS_ONLY)))
        return frozenset(
            name
            for header in headers
            if header.get_attr("IPSET_ATTR_FAMILY") == self._family
            and (name := header.get_attr("IPSET_ATTR_SETNAME")).startswith(ENDPOINT_PREFIX)
        )

    def create(self, names: Iterable[str]) -> None:
        """Create sets; one that exists is left as it is.

        Raises:
            RestoreRefused: the kernel refused one; ``lines`` names the chain that uses it.
            BackendError: there is no ipset.
        """
        with _ipset() as ipset:
            for name in names:
                try:
                    _checked(
                        ipset.create,
                        name,
                        stype="hash:ip",
                        family=self._family,
                        exclusive=False,
                        hashsize=_FIRST_BUCKETS,
                        maxelem=CLIENTS,
                        timeout=_DEFAULT_SECONDS,
                    )
                except BackendError as error:
                    raise RestoreRefused(str(error), (f":{name}",)) from error

    def destroy(self, names: Iterable[str]) -> list[str]:
        """Destroy sets that our rules no longer use.

        Returns:
            One error text for each set that the kernel kept; another program's rule may use it.

        Raises:
            BackendError: there is no ipset.
        """
        kept: list[str] = []
        with _ipset() as ipset:
            for name in names:
                try:
                    _checked(ipset.destroy, name)
                except BackendError as error:
                    kept.append(str(error))
        return kept


def _ipset() -> Any:
    from pyroute2 import IPSet  # noqa: PLC0415 - see the module's text

    return _checked(IPSet)


def _checked(call: Any, *arguments: str, **options: Any) -> Any:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        return call(*arguments, **options)
    except (NetlinkError, OSError) as error:
        raise BackendError(" ".join(("ipset", *arguments, str(error)))) from error
