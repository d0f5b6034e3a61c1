"""Explains nftables mode, see ``ModeExplainer``."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.nftables.core.settings import NftablesSettings, extend_settings
from svcproxy.backends.nftables.core.table_sets import AFFINITY, AFFINITY_LIMIT
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain import nftables_reader
from svcproxy.explain.core import nft_differences, rendered_nftables
from svcproxy.explain.core.differences import Difference, one_line
from svcproxy.explain.core.nft_objects import object_lines
from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.trace import Ruleset
from svcproxy.explain.nftables_reader import NftKernel
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
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

    def desired(self, desired: Desired) -> NftRuleset:
        """See ``ModeExplainer``."""
        return NftRuleset(rendered_nftables.rendered(desired.ports, _own(desired.settings)))

    def read(self, settings: Settings, iptables_variant: str) -> NftKernel:  # noqa: ARG002
        """See ``ModeExplainer``."""
        return nftables_reader.read(settings.family)

    def ruleset(self, kernel: NftKernel) -> NftRuleset:
        """See ``ModeExplainer``."""
        table = kernel.contents()
        clients = len(kernel.clients)
        return NftRuleset(table, frozenset({AFFINITY} if clients >= AFFINITY_LIMIT else ()))

    def differences(self, desired: Desired, kernel: NftKernel) -> Sequence[Difference]:
        """See ``ModeExplainer``."""
        own = _own(desired.settings)
        settings = extend_settings(
            own,
            service_cidrs=desired.service_cidrs or own.service_cidrs,
            drop_invalid=kernel.drop_invalid,
        )
        found = nft_differences.differences(desired, settings, kernel.table)
        return [each.with_safe_name() for each in found]

    def sizes(self, kernel: NftKernel) -> Mapping[str, int]:
        """See ``ModeExplainer``."""
        table = kernel.table
        elements = sum(map(len, table.elements.values()))
        return {"element": elements, "chain": len(table.chains)}

    def objects(self, ruleset: Ruleset, port: ServicePort, settings: Settings) -> Sequence[str]:
        """See ``ModeExplainer``."""
        assert isinstance(ruleset, NftRuleset), "rules of another mode"
        return list(map(one_line, object_lines(ruleset.table, port, settings)))


def _own(settings: Settings) -> NftablesSettings:
    assert isinstance(settings, NftablesSettings), "settings of another mode"
    return settings


EXPLAINER = NftablesExplainer()
