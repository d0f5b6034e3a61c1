"""Whether conntrack is strict about the TCP window, for backends that drop INVALID packets."""

from pathlib import Path

_TCP_BE_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")


def is_liberal() -> bool:
    """Whether conntrack takes packets outside the TCP window for valid.

    What it still calls INVALID then is not to be dropped (as in kube-proxy, which asks once).
    """
    try:
        return _TCP_BE_LIBERAL.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False
