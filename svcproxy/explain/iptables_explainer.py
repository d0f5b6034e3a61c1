"""Explains iptables mode, see ``ModeExplainer``."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain import iptables_reader
from svcproxy.explain.core import iptables_differences, rendered_iptables
from svcproxy.explain.core.differences import Difference, one_line
from svcproxy.explain.core.iptables_rules import IptablesRuleset
from svcproxy.explain.core.trace import Ruleset
from svcproxy.explain.iptables_reader import IptablesKernel
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.priority import reading_the_kernel
from svcproxy.state.desired import DesiredState


class IptablesExplainer:
    """Explains iptables mode."""

    def settings(self, values: Mapping[str, Any]) -> IptablesSettings:
        """See ``ModeExplainer``."""
        return msgspec.convert(values, IptablesSettings)

    def assumed_settings(
        self, config: Config, family: IPFamily, state: DesiredState
    ) -> IptablesSettings:
        """See ``ModeExplainer``."""
        common = structs.asdict(settings_for(config, family, state.node))
        return IptablesSettings(**common)

    def desired(self, desired: Desired) -> IptablesRuleset:
        """See ``ModeExplainer``."""
        return rendered_iptables.rendered(desired.ports, _own(desired.settings))

    def read(self, settings: Settings, iptables_variant: str) -> IptablesKernel:
        """See ``ModeExplainer``."""
        with_sets = _own(settings).affinity_sets
        with reading_the_kernel():
            return iptables_reader.read(settings.family, iptables_variant, with_sets=with_sets)

    def ruleset(self, kernel: IptablesKernel) -> IptablesRuleset:
        """See ``ModeExplainer``."""
        return IptablesRuleset(kernel.observed.tables, kernel.clients)

    def differences(self, desired: Desired, kernel: IptablesKernel) -> Sequence[Difference]:
        """See ``ModeExplainer``."""
        settings = structs.replace(_own(desired.settings), drop_invalid=kernel.drop_invalid)
        found = iptables_differences.differences(desired, settings, kernel.observed)
        return [each.with_safe_name() for each in found]

    def sizes(self, kernel: IptablesKernel) -> Mapping[str, int]:
        """See ``ModeExplainer``."""
        chains = [
            rules
            for table in kernel.observed.tables.values()
            for name, rules in table.items()
            if name.startswith("KUBE-")
        ]
        return {"rule": sum(map(len, chains)), "chain": len(chains)}

    def objects(self, ruleset: Ruleset, port: ServicePort, settings: Settings) -> Sequence[str]:
        """See ``ModeExplainer``."""
        assert isinstance(ruleset, IptablesRuleset), "rules of another mode"
        return list(map(one_line, iptables_differences.object_lines(ruleset, port, _own(settings))))


def _own(settings: Settings) -> IptablesSettings:
    assert isinstance(settings, IptablesSettings), "settings of another mode"
    return settings


EXPLAINER = IptablesExplainer()
