"""Explains IPVS mode, see ``ModeExplainer``."""

from collections.abc import Mapping
from typing import Any

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts, scheduling
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain.core import rendered_ipvs
from svcproxy.explain.core.ipvs_rules import IpvsRuleset
from svcproxy.model.names import IPFamily
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


def _own(settings: Settings) -> IpvsSettings:
    assert isinstance(settings, IpvsSettings), "settings of another mode"
    return settings


EXPLAINER = IpvsExplainer()
