"""IP families and protocols by their kernel numbers."""

from svcproxy.model.names import IPFamily, Protocol

FAMILY_NUMBERS = {IPFamily.IPV4: 2, IPFamily.IPV6: 10}
"""``AF_INET`` and ``AF_INET6``; netfilter's ``NFPROTO_IPV4`` and ``NFPROTO_IPV6`` are the same."""

PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""``IPPROTO_TCP``, ``IPPROTO_UDP`` and ``IPPROTO_SCTP``."""
