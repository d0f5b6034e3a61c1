"""The rules that iptables mode programs for some Service ports.

The only module of this package that depends on iptables mode's planner.
"""

from collections.abc import Mapping

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.plan import Observed
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.explain.core.iptables_rules import IptablesRuleset
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort


def rendered(
    ports: Mapping[ServicePortName, ServicePort], settings: IptablesSettings
) -> IptablesRuleset:
    """Return the rules that iptables mode writes to empty tables."""
    plan = Planner(settings).plan(Desired(ports, settings), settings, Observed({}))
    return IptablesRuleset.parse(plan.text(), dict.fromkeys(plan.create_sets, frozenset()))
