"""Names of chains that belong to one Service port, hashed as kube-proxy hashes them."""

from base64 import b32encode
from hashlib import sha256

from svcproxy.model.names import ServicePortName


def hash16(text: str) -> str:
    """The first 16 characters of the base32 SHA-256 of ``text``: 80 bits, letters and digits."""
    return b32encode(sha256(text.encode(errors="surrogatepass")).digest()).decode()[:16]


def port_hash(name: ServicePortName) -> str:
    """The hash that a Service port's chains share."""
    return hash16(f"{name}{name.protocol.keyword}")
