"""Explains iptables mode, see ``ModeExplainer``."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain.core import rendered_iptables
from svcproxy.explain.core.iptables_rules import IptablesRuleset
from svcproxy.model.names import IPFamily
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


def _own(settings: Settings) -> IptablesSettings:
    assert isinstance(settings, IptablesSettings), "settings of another mode"
    return settings


EXPLAINER = IptablesExplainer()
