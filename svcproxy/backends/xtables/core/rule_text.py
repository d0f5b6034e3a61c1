"""Rules as text, in the format of iptables-save.

Rules are rendered in that format, so that rules can be compared with the kernel's as strings: after
a restart, every chain is equal and nothing is written. The format was checked with iptables 1.8.9,
nft and legacy; ``savefile`` normalises what other versions print differently.
"""

import re
from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

Rules = tuple[str, ...]
"""The rules of one chain, each without the leading ``-A CHAIN``."""

FILTER = "filter"
NAT = "nat"
TABLES = (FILTER, NAT)


def rule(*parts: str) -> str:
    """Join the non-empty parts of a rule with single spaces."""
    return " ".join(filter(None, parts))


COMMENT_BYTES = 255
"""The maximum length of a comment (``XT_MAX_COMMENT_LEN`` without the terminating NUL)."""
_QUOTES = str.maketrans({'"': "_", "\\": "_", "'": "_"})


_UNQUOTED = re.compile(r"[A-Za-z0-9_-]+").fullmatch
"""Comments that iptables-save prints without quotes (``xtables_save_string``)."""


def comment(text: str) -> str:
    """Return a comment match that is safe for any text, and equal to what iptables-save prints.

    The text is truncated to ``COMMENT_BYTES``, because iptables refuses longer comments. Quotes,
    backslashes, control characters (a newline would end the rule in a restore input) and non-ASCII
    characters become underscores, because escaping differs between iptables versions. No valid API
    name contains any of them.

    iptables-save prints quotes around any text with a space, slash or colon. All of svcproxy's
    comments have one, unless they were truncated.
    """
    text = text[:COMMENT_BYTES]
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "_" for c in text)
    if '"' in text or "\\" in text or "'" in text:
        text = text.translate(_QUOTES)
    if " " not in text and _UNQUOTED(text):
        return f"-m comment --comment {text}"
    return f'-m comment --comment "{text}"'


def format_address(address: str) -> str:
    """Return a canonical address in the format of iptables-save, which uses ``inet_ntop``.

    Python's ``ipaddress`` prints ``::102:304`` where ``inet_ntop`` prints ``::1.2.3.4``.

    Raises:
        ValueError: the text is not an IP address. iptables would resolve it as a host name.
    """
    data = address_bytes(address)
    # For all other addresses, the two formats are the same.
    return address_text(data) if address.startswith("::") else address


def address_bytes(address: str) -> bytes:
    """Return an address as bytes; ten times as fast as ``ipaddress``.

    Raises:
        ValueError: the text is not an IP address.
    """
    try:
        return inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except (OSError, ValueError):
        raise ValueError(f"{address[:64]!r} is not an IP address") from None


def address_text(data: bytes) -> str:
    """Return the text of an address of 4 or 16 bytes, in the format of iptables-save."""
    return inet_ntop(AF_INET if len(data) == 4 else AF_INET6, data)


def format_cidr(cidr: str) -> str:
    """Return a CIDR in the format of iptables-save.

    Raises:
        ValueError: the text is not an address with a prefix length.
    """
    address, _, length = cidr.partition("/")
    if not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError(f"{cidr[:64]!r} is not a CIDR")
    return f"{format_address(address)}/{int(length)}"


def append(chain: str, rules: Iterable[str]) -> Iterable[str]:
    """The restore lines that append ``rules`` to ``chain``."""
    return (f"-A {chain} {text}" for text in rules)
