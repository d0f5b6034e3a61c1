"""Hashes for the names of per-Service chains, computed as in kube-proxy."""

from base64 import b32encode
from hashlib import sha256

from svcproxy.model.names import ServicePortName


def hash16(text: str) -> str:
    """Return the first 16 characters of the base32 SHA-256 of ``text``, which are 80 bits."""
    return b32encode(sha256(text.encode(errors="surrogatepass")).digest()).decode()[:16]


def port_hash(name: ServicePortName) -> str:
    """Return the hash that is part of the names of a Service port's chains."""
    return hash16(f"{name}{name.protocol.keyword}")
