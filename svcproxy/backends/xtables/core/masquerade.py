"""The rules around the masquerade mark, which are the same in every mode that uses iptables.

``mark`` is the mark's one bit in hexadecimal, for example ``0x4000``. The texts are kube-proxy's.
"""

from collections.abc import Iterator

from svcproxy.backends.xtables.core.rule_text import Rules, comment, rule


def mark_rules(mark: str) -> Rules:
    """KUBE-MARK-MASQ: ask for masquerading."""
    return (f"-j MARK --set-xmark {mark}/{mark}",)


def masquerade_rules(mark: str) -> Iterator[str]:
    """The end of KUBE-POSTROUTING: masquerade what is marked."""
    yield f"-m mark ! --mark {mark}/{mark} -j RETURN"
    # The mark is cleared, or a packet that passes the stack again, encapsulated, would be
    # masqueraded again.
    yield f"-j MARK --set-xmark {mark}/0x0"
    note = comment("kubernetes service traffic requiring SNAT")
    yield f"{note} -j MASQUERADE --random-fully"


def forward_rules(mark: str, *, drop_invalid: bool, count: str = "") -> Iterator[str]:
    """The begin of KUBE-FORWARD: Services' packets pass whatever the policy of FORWARD is.

    ``drop_invalid`` drops what conntrack calls INVALID (kubernetes#74839); ``count`` is a match
    that counts it.
    """
    if drop_invalid:
        yield rule("-m conntrack --ctstate INVALID", count, "-j DROP")
    note = comment("kubernetes forwarding rules")
    yield f"{note} -m mark --mark {mark}/{mark} -j ACCEPT"
    note = comment("kubernetes forwarding conntrack rule")
    yield f"{note} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
