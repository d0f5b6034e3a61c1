"""The one sysctl that node ports on localhost need, whichever backend translates."""

from pathlib import Path

import structlog

_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")

log = structlog.get_logger()


def allow_localnet() -> None:
    """Let packets to 127.0.0.0/8 be translated: node ports on localhost need it."""
    try:
        if _ROUTE_LOCALNET.read_text().strip() != "1":
            _ROUTE_LOCALNET.write_text("1")
    except OSError as error:
        log.warning(
            "sysctl.not_set",
            sysctl="net.ipv4.conf.all.route_localnet",
            error=error.strerror,
            effect="node ports do not answer on 127.0.0.1",
            remedy="set it to 1, or pass --iptables-localhost-nodeports=false",
        )
