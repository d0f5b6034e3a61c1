"""SCTP with real packets: the kernel has no SCTP sockets, but netfilter supports SCTP.

Raw sockets exchange the first two packets of an association, INIT and INIT ACK (RFC 9260).
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from testbed import manifests as m
from testbed.cluster import Host
from tests.kernel.conftest import Stage, at

pytestmark = pytest.mark.kernel

_SCTP = 132
_INIT, _INIT_ACK = 1, 2
_POLYNOMIAL = 0x82F63B78


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ _POLYNOMIAL * (crc & 1)
    return crc ^ 0xFFFFFFFF


def _packet(source: int, destination: int, kind: int, tags: tuple[int, int]) -> bytes:
    """Return a packet with one chunk; ``tags`` are the peer's (in the header) and the sender's."""
    chunk = struct.pack(">BBHIIHHI", kind, 0, 20, tags[1], 65536, 1, 1, 1)
    header = struct.pack(">HHII", source, destination, tags[0], 0)
    checksum = _crc32c(header + chunk)
    return header[:8] + struct.pack("<I", checksum) + chunk


class _Received:
    """A received packet: source, ports and chunk."""

    def __init__(self, family: int, data: bytes, peer: str) -> None:
        payload = data[(data[0] & 15) * 4 :] if family == 4 else data
        self.peer = peer
        self.source, self.destination, self.tag = struct.unpack_from(">HHI", payload)
        self.kind = payload[12]
        (self.own_tag,) = struct.unpack_from(">I", payload, 16)
        zeroed = payload[:8] + bytes(4) + payload[12:]
        assert struct.unpack_from("<I", payload, 8)[0] == _crc32c(zeroed), "checksum"


def _socket(host: Host, family: int) -> socket.socket:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    made = host.netns.call(lambda: socket.socket(kind, socket.SOCK_RAW, _SCTP))
    made.settimeout(2.0)
    return made


@contextlib.contextmanager
def _servers(pods: list[Host], family: int, port: int, seen: list[str]) -> Iterator[None]:
    """Pods that answer INIT on ``port``; ``seen`` collects their names and the sources they saw."""
    sockets = [_socket(pod, family) for pod in pods]

    def serve(pod: Host, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(2048)
                got = _Received(family, data, peer[0])
                if got.kind == _INIT and got.destination == port:
                    seen.append(f"{pod.name} saw {got.peer}")
                    reply = _packet(port, got.source, _INIT_ACK, (got.own_tag, 7))
                    sock.sendto(reply, (got.peer, 0))

    for sock in sockets:
        sock.settimeout(None)
    threads = [
        threading.Thread(target=serve, args=pair) for pair in zip(pods, sockets, strict=True)
    ]
    for thread in threads:
        thread.start()
    yield
    for sock, thread in zip(sockets, threads, strict=True):
        _wake(sock, family)
        thread.join()
        sock.close()


def _wake(sock: socket.socket, family: int) -> None:
    """Wake a thread that waits on this socket, so that it ends."""
    sock.settimeout(0.01)
    with contextlib.suppress(OSError):
        sock.sendto(_packet(1, 1, 0, (0, 0)), ("127.0.0.1" if family == 4 else "::1", 0))


def _associate(host: Host, family: int, address: str, port: int) -> _Received:
    """Send INIT and return the INIT ACK."""
    source = 20000 + threading.get_native_id() % 1000
    with _socket(host, family) as sock:
        sock.sendto(_packet(source, port, _INIT, (0, 99)), (address, 0))
        while True:
            data, peer = sock.recvfrom(2048)
            got = _Received(family, data, peer[0])
            if got.kind == _INIT_ACK and got.destination == source:
                return got


@pytest.mark.behaviour("Kinds of Services, and IP families: SCTP")
def test_associations_begin_at_cluster_ip_and_node_port(stage: Stage, family: int) -> None:
    pods = list(stage.here)
    ports = [m.port(9000, name="sctp", target=9001, protocol="SCTP", node_port=31132)]
    offer = stage.offer(family, [at(p, family) for p in pods], ports=ports, type="NodePort")
    seen: list[str] = []
    with _servers(list(pods), family, 9001, seen):
        for host, address, port in (
            (stage.client, offer.vip, 9000),
            (stage.there[0], offer.vip, 9000),
            (stage.client, stage.node.ip(family), 31132),
        ):
            answer = _associate(host, family, address, port)
            assert (answer.peer, answer.source, answer.tag) == (address, port, 99)
    assert len(seen) == 3
    masqueraded = {f"{name} saw {source}" for name, source in stage.masqueraded(pods, family)}
    kept = {f"{n} saw {s}" for n, s in stage.kept(stage.there[0], pods, family)}
    assert seen[0] in masqueraded
    assert seen[1] in kept
    assert seen[2] in masqueraded
