"""The rules for the masquerade mark, shared by the modes that use iptables.

``mark`` is the bit of ``--iptables-masquerade-bit`` in hexadecimal, for example ``0x4000``. The
texts are those of kube-proxy.
"""

from collections.abc import Iterator

from svcproxy.backends.xtables.core.rule_text import Rules, comment, rule


def mark_rules(mark: str) -> Rules:
    """Return the rules of KUBE-MARK-MASQ, which marks packets for masquerading."""
    return (f"-j MARK --set-xmark {mark}/{mark}",)


def masquerade_rules(mark: str) -> Iterator[str]:
    """Yield the last rules of KUBE-POSTROUTING, which masquerade marked packets."""
    yield f"-m mark ! --mark {mark}/{mark} -j RETURN"
    # Clear the mark. An encapsulated packet traverses the stack again and would be masqueraded
    # twice.
    yield f"-j MARK --set-xmark {mark}/0x0"
    note = comment("kubernetes service traffic requiring SNAT")
    yield f"{note} -j MASQUERADE --random-fully"


def forward_rules(mark: str, *, drop_invalid: bool, count: str = "") -> Iterator[str]:
    """Yield the first rules of KUBE-FORWARD, which accept Service traffic despite the policy.

    Args:
        mark: the masquerade mark.
        drop_invalid: drop packets that conntrack marks INVALID (kubernetes#74839).
        count: a match that counts the dropped packets; empty for no count.
    """
    if drop_invalid:
        yield rule("-m conntrack --ctstate INVALID", count, "-j DROP")
    note = comment("kubernetes forwarding rules")
    yield f"{note} -m mark --mark {mark}/{mark} -j ACCEPT"
    note = comment("kubernetes forwarding conntrack rule")
    yield f"{note} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
