"""The settings of iptables mode: the common ones, and the features of this node's kernel."""

import msgspec
from msgspec import structs

from svcproxy.backends.settings import Settings


class KernelFeatures(msgspec.Struct, frozen=True, gc=False):
    """What the backend has found out about the kernel and the installed iptables extensions.

    Attributes:
        hairpin_match: as in ``IptablesSettings``.
        accounting: as in ``IptablesSettings``.
        affinity_sets: as in ``IptablesSettings``; ``None`` until the first plan that uses ipsets is
            applied, because probing loads kernel modules and writes to the nat table.
        drop_invalid: as in ``IptablesSettings``.
    """

    hairpin_match: bool = True
    accounting: bool = False
    affinity_sets: bool | None = None
    drop_invalid: bool = True


class IptablesSettings(Settings, frozen=True, gc=False):
    """Everything that the rules of iptables mode depend on besides the Service ports.

    Attributes:
        drop_invalid: drop forwarded packets that conntrack marks INVALID (kubernetes#74839).
        hairpin_match: use ``xt_bpf``, with which a single rule matches all hairpin connections
            (an endpoint that reaches itself through its Service). Without it, each endpoint gets a
            KUBE-SEP chain of its own.
        affinity_sets: remember the clients of session affinity in ipsets (``hash:ip`` and
            ``xt_set``), thousands of clients per endpoint. Without it, ``xt_recent`` remembers 100, as in
            kube-proxy.
        accounting: count packets in the nfacct objects of ``svcproxy.model.counters``
            (``xt_nfacct``).
    """

    drop_invalid: bool = True
    hairpin_match: bool = True
    affinity_sets: bool = True
    accounting: bool = False


def extend(settings: Settings, features: KernelFeatures) -> IptablesSettings:
    """Return ``settings`` together with the kernel's features.

    Ipsets that have not been probed yet are assumed to work; ``IptablesBackend.apply`` probes them
    before it creates the first one.
    """
    return IptablesSettings(
        **structs.asdict(settings),
        drop_invalid=features.drop_invalid,
        hairpin_match=features.hairpin_match,
        accounting=features.accounting,
        affinity_sets=features.affinity_sets is not False,
    )
