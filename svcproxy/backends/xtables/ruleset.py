"""Rules as text in the form in which iptables-save prints them.

Writing that form from the start makes the comparison with the kernel a comparison of strings:
a restart reads, finds every chain equal, and writes nothing. The forms were checked against
iptables 1.8.9, nft and legacy; ``savefile`` evens out what other versions print differently.
"""

from collections.abc import Iterable, Mapping

Rules = tuple[str, ...]
Chains = Mapping[str, Rules]

FILTER = "filter"
NAT = "nat"
TABLES = (FILTER, NAT)


def rule(*parts: str) -> str:
    """Join the non-empty parts of a rule with single spaces."""
    return " ".join(part for part in parts if part)


def comment(text: str) -> str:
    """A comment match; names in the API hold no quotes, so none need escaping.

    iptables-save prints quotes around any text with a space, slash or colon: all of ours. The
    kernel keeps 255 characters (``XT_MAX_COMMENT_LEN``) and iptables refuses more.
    """
    return f'-m comment --comment "{text[:255]}"'


def append(chain: str, rules: Iterable[str]) -> Iterable[str]:
    """The restore lines that append ``rules`` to ``chain``."""
    return (f"-A {chain} {text}" for text in rules)
