"""The ipsets that hold the clients of each endpoint, for session affinity.

There is one set for each endpoint of a Service with session affinity. Creating or destroying one
takes about 0.2 ms with pyroute2; other changes do not touch ipsets. pyroute2 is imported when the
first set is needed, because it takes 35 MB and most nodes have no Service with affinity.
"""

from collections.abc import Iterable
from typing import Any

from svcproxy.backends.base import BackendError
from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.families import FAMILY_NUMBERS

CLIENTS = 65536
"""The maximum number of clients in a set; xt_recent holds 100."""
_BUCKETS = 1024
"""The size of a set's hash table, 8 KiB; it is ipset's default. The kernel does not enlarge the table
when rules add clients, and a bucket holds 12: a set holds some 3,000 clients before single ones are
lost. With 64 buckets, that began at 200. The kernel allows 65,534 sets, so the tables of all sets
together take at most 512 MiB."""
_DEFAULT_SECONDS = 10800
_HEADERS_ONLY = 4
"""``IPSET_FLAG_LIST_HEADER``: list sets without their elements."""


class AffinitySets:
    """Creates, lists and destroys the ipsets of one family; used by a single thread."""

    def __init__(self, family: IPFamily) -> None:
        self._family = FAMILY_NUMBERS[family]

    def names(self) -> frozenset[str]:
        """Return the names of the family's sets that belong to endpoint chains.

        Raises:
            BackendError: the kernel has no ipset, or refuses to list the sets.
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
        """Create sets; existing ones are left unchanged.

        Raises:
            RestoreRefused: the kernel refused a set; ``lines`` names the chain that uses it.
            BackendError: the kernel has no ipset.
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
                        hashsize=_BUCKETS,
                        maxelem=CLIENTS,
                        timeout=_DEFAULT_SECONDS,
                    )
                except BackendError as error:
                    raise RestoreRefused(str(error), (f":{name}",)) from error

    def destroy(self, names: Iterable[str]) -> list[str]:
        """Destroy sets that svcproxy's rules no longer use.

        Returns:
            An error text for each set that the kernel kept, because another program's rule uses it.

        Raises:
            BackendError: the kernel has no ipset.
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
    from pyroute2 import IPSet  # noqa: PLC0415 - loaded only when needed, see above

    return _checked(IPSet)


def _checked(call: Any, *arguments: str, **options: Any) -> Any:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        return call(*arguments, **options)
    except (NetlinkError, OSError) as error:
        raise BackendError(" ".join(("ipset", *arguments, str(error)))) from error
