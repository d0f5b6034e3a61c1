"""Explains IPVS mode, see ``ModeExplainer``."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts, scheduling
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain import ipvs_reader
from svcproxy.explain.core import ipvs_differences, rendered_ipvs
from svcproxy.explain.core.differences import Difference, one_line
from svcproxy.explain.core.ipvs_objects import object_lines
from svcproxy.explain.core.ipvs_rules import IpvsRuleset
from svcproxy.explain.core.trace import Ruleset
from svcproxy.explain.ipvs_reader import IpvsKernel
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.priority import reading_the_kernel
from svcproxy.state.desired import DesiredState


class IpvsExplainer:
    """Explains IPVS mode."""

    def settings(self, values: Mapping[str, Any]) -> IpvsSettings:
        """See ``ModeExplainer``."""
        return msgspec.convert(values, IpvsSettings)

    def assumed_settings(
        self, config: Config, family: IPFamily, state: DesiredState
    ) -> IpvsSettings:
        """See ``ModeExplainer``."""
        common = settings_for(config, family, state.node)
        addresses = (common.node_address,) if common.node_address else ()
        return IpvsSettings.of(
            common,
            KernelFacts(addresses=addresses),
            scheduling(config.ipvs_scheduler or "rr"),
            config.ipvs_exclude_cidrs,
        )

    def desired(self, desired: Desired) -> IpvsRuleset:
        """See ``ModeExplainer``."""
        return rendered_ipvs.rendered(desired.ports, _own(desired.settings))

    def read(self, settings: Settings, iptables_variant: str) -> IpvsKernel:
        """See ``ModeExplainer``."""
        with reading_the_kernel():
            return ipvs_reader.read(_own(settings), iptables_variant)

    def ruleset(self, kernel: IpvsKernel) -> IpvsRuleset:
        """See ``ModeExplainer``."""
        observed = kernel.observed
        entries = {name: found for name, (_, found) in observed.sets.items()}
        made = rendered_ipvs.ruleset(
            observed.tables, entries, observed.servers, observed.real, bound=observed.bound
        )
        return made.with_persistent(kernel.persistent)

    def differences(self, desired: Desired, kernel: IpvsKernel) -> Sequence[Difference]:
        """See ``ModeExplainer``."""
        settings = structs.replace(_own(desired.settings), facts=kernel.facts)
        found = ipvs_differences.differences(desired, settings, kernel.observed)
        return [each.with_safe_name() for each in found]

    def sizes(self, kernel: IpvsKernel) -> Mapping[str, int]:
        """See ``ModeExplainer``."""
        observed = kernel.observed
        return {
            "virtual_server": len(observed.servers),
            "real_server": sum(map(len, observed.real.values())),
            "ipset_entry": sum(len(entries) for _, entries in observed.sets.values()),
        }

    def objects(self, ruleset: Ruleset, port: ServicePort, settings: Settings) -> Sequence[str]:
        """See ``ModeExplainer``."""
        assert isinstance(ruleset, IpvsRuleset), "rules of another mode"
        return list(map(one_line, object_lines(ruleset, port, _own(settings))))


def _own(settings: Settings) -> IpvsSettings:
    assert isinstance(settings, IpvsSettings), "settings of another mode"
    return settings


EXPLAINER = IpvsExplainer()
