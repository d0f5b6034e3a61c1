"""Rules as text in the form in which iptables-save prints them.

Writing that form from the start makes the comparison with the kernel a comparison of strings:
a restart reads, finds every chain equal, and writes nothing. The forms were checked against
iptables 1.8.9, nft and legacy; ``savefile`` evens out what other versions print differently.
"""

import re
from collections.abc import Iterable, Mapping
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

Rules = tuple[str, ...]
Chains = Mapping[str, Rules]

FILTER = "filter"
NAT = "nat"
TABLES = (FILTER, NAT)


def rule(*parts: str) -> str:
    """Join the non-empty parts of a rule with single spaces."""
    return " ".join(filter(None, parts))


COMMENT_BYTES = 255
"""What the kernel keeps of a comment (``XT_MAX_COMMENT_LEN`` less the terminating NUL)."""
_QUOTES = str.maketrans({'"': "_", "\\": "_", "'": "_"})


_UNQUOTED = re.compile(r"[A-Za-z0-9_-]+").fullmatch
"""What iptables-save prints without quotes (``xtables_save_string``)."""


def comment(text: str) -> str:
    """A comment match that is safe for any text, and equal to what iptables-save prints.

    The text is cut to what the kernel keeps; iptables refuses longer ones. Quotes, backslashes,
    control characters (a newline ends a rule of a restore input) and everything outside ASCII
    become underscores: a comment is a remark, and escaping differs between iptables versions. No
    valid API name contains any of these.

    iptables-save prints quotes around any text with a space, slash or colon: all of ours but those
    that were cut.
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
    """A canonical address as iptables-save prints it, which is as ``inet_ntop`` does.

    Python's ``ipaddress`` writes ``::102:304``, ``inet_ntop`` ``::1.2.3.4``; the rules are compared
    as text.

    Raises:
        ValueError: it is no IP address. iptables would look it up as a host name.
    """
    data = address_bytes(address)
    # Elsewhere the canonical spellings agree.
    return address_text(data) if address.startswith("::") else address


def address_bytes(address: str) -> bytes:
    """An address as bytes; ten times as fast as ``ipaddress``.

    Raises:
        ValueError: it is no IP address.
    """
    try:
        return inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except (OSError, ValueError):
        raise ValueError(f"{address[:64]!r} is no IP address") from None


def address_text(data: bytes) -> str:
    """An address from its 4 or 16 bytes, as iptables-save prints it."""
    return inet_ntop(AF_INET if len(data) == 4 else AF_INET6, data)


def format_cidr(cidr: str) -> str:
    """A CIDR as iptables-save prints it.

    Raises:
        ValueError: it is no address with a prefix length.
    """
    address, _, length = cidr.partition("/")
    if not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError(f"{cidr[:64]!r} is no CIDR")
    return f"{format_address(address)}/{int(length)}"


def append(chain: str, rules: Iterable[str]) -> Iterable[str]:
    """The restore lines that append ``rules`` to ``chain``."""
    return (f"-A {chain} {text}" for text in rules)
