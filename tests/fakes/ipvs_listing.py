"""``/proc/net/ip_vs`` of a fake kernel, as Linux 6.1 writes it."""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from random import Random

from svcproxy.netlink.core.kernel_objects import (
    RealServers,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)

PREAMBLE = b"""\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""
TICKS = 250


def record(
    key: VirtualServerKey, server: VirtualServer, real: RealServers, counter: int = 0
) -> bytes:
    """The lines of one virtual server (``ip_vs_info_seq_show``)."""
    ipv6 = ":" in key.address
    once = "ops " if server.flags & ServerFlag.ONE_PACKET else ""
    text = f"{key.protocol}  {_written(key.address, key.port)} {server.scheduler} "
    text += "" if ipv6 else f"{once} "
    if server.flags & ServerFlag.PERSISTENT:
        text += f"persistent {server.timeout * TICKS} {'80000000' if ipv6 else 'FFFFFFFF'}"
    lines = [text]
    lines += (
        f"  -> {_written(*each)}      {'Masq':<7} {weight:<6} {counter:<10} {counter:<10}"
        for each, weight in real.items()
    )
    return "\n".join([*lines, ""]).encode()


def pieces(
    servers: Mapping[VirtualServerKey, VirtualServer],
    real: Mapping[VirtualServerKey, RealServers],
    random: Random,
) -> Iterator[bytes]:
    """Read the file in chunks, each with the servers at the time of its reading (``seq_file``).

    The rest of a virtual server that does not fit a chunk is in the next one, with its former
    state.
    """
    yield PREAMBLE
    position = 0
    while position < len(servers):
        keys = list(servers)[position : position + random.randint(1, 3)]
        position += len(keys)
        *whole, last = (
            record(key, servers[key], shuffled(real[key], random), random.getrandbits(20))
            for key in keys
        )
        size = random.choice([len(last), random.randint(1, len(last))])
        yield b"".join(whole) + last[:size]
        while last := last[size:]:
            size = random.randint(1, len(last))
            yield last[:size]


def shuffled(real: RealServers, random: Random) -> RealServers:
    """Return real servers in random order."""
    return dict(random.sample(list(real.items()), len(real)))


def _written(address: str, port: int) -> str:
    packed = ip_address(address).packed
    if len(packed) == 4:
        return f"{packed.hex().upper()}:{port:04X}"
    return f"[{packed.hex(':', 2)}]:{port:04X}"
