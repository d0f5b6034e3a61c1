"""Explains nftables mode, see ``ModeExplainer``."""

from collections.abc import Mapping
from typing import Any

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.nftables.core.settings import NftablesSettings, extend_settings
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain.core import rendered_nftables
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.model.names import IPFamily
from svcproxy.state.desired import DesiredState


class NftablesExplainer:
    """Explains nftables mode."""

    def settings(self, values: Mapping[str, Any]) -> NftablesSettings:
        """See ``ModeExplainer``."""
        return msgspec.convert(values, NftablesSettings)

    def assumed_settings(
        self, config: Config, family: IPFamily, state: DesiredState
    ) -> NftablesSettings:
        """See ``ModeExplainer``."""
        common = settings_for(config, family, state.node)
        return extend_settings(common, service_cidrs=state.service_cidrs, drop_invalid=True)

    def desired(self, desired: Desired) -> NftTable:
        """See ``ModeExplainer``."""
        return rendered_nftables.rendered(desired.ports, _own(desired.settings))


def _own(settings: Settings) -> NftablesSettings:
    assert isinstance(settings, NftablesSettings), "settings of another mode"
    return settings


EXPLAINER = NftablesExplainer()
