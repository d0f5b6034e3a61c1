"""IP families by their kernel numbers."""

from svcproxy.model.names import IPFamily

FAMILY_NUMBERS = {IPFamily.IPV4: 2, IPFamily.IPV6: 10}
"""``AF_INET`` and ``AF_INET6``; netfilter's ``NFPROTO_IPV4`` and ``NFPROTO_IPV6`` are the same."""
