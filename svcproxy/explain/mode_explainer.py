"""What commands need to know about a mode: its settings, its rules as text, and its kernel state.

``mode_explainer`` is the registry. A mode without an explainer can still be run; commands then say that they do
not know it.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

from svcproxy.backends.base import Desired
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain.core.differences import Difference, DifferenceKind
from svcproxy.explain.core.trace import Ruleset
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import DesiredState

__all__ = [
    "Difference",
    "DifferenceKind",
    "KernelUnreadableError",
    "ModeExplainer",
    "mode_explainer",
]

Kernel = TypeVar("Kernel")

_MODULES = {
    "iptables": "svcproxy.explain.iptables_explainer",
    "nftables": "svcproxy.explain.nftables_explainer",
    "ipvs": "svcproxy.explain.ipvs_explainer",
}


class KernelUnreadableError(Exception):
    """The kernel state cannot be read; the message is one line with the reason and the remedy."""


class ModeExplainer(Protocol[Kernel]):
    """Explains one mode. Nothing in it changes the kernel."""

    def settings(self, values: Mapping[str, Any]) -> Settings:
        """Convert ``FamilyStatus.settings`` to the mode's own settings.

        Raises:
            msgspec.ValidationError: the values are of another version.
        """

    def assumed_settings(self, config: Config, family: IPFamily, state: DesiredState) -> Settings:
        """Return the settings for a current kernel that has all features, without a daemon."""

    def desired(self, desired: Desired) -> Ruleset:
        """Return the rules that the mode writes into an empty kernel."""

    def read(self, settings: Settings, iptables_variant: str) -> Kernel:
        """Read the kernel state of a family: all objects that may belong to the mode.

        Raises:
            KernelUnreadableError: not permitted, or a program or module is missing.
        """

    def ruleset(self, kernel: Kernel) -> Ruleset:
        """Return the kernel state as rules that can be traced, with the entries of affinity."""

    def differences(self, desired: Desired, kernel: Kernel) -> Sequence[Difference]:
        """Compare the kernel state with the desired one; empty if a resync would write nothing."""

    def sizes(self, kernel: Kernel) -> Mapping[str, int]:
        """Return how many objects of the mode the kernel holds, by kind (``chain``, ``element``)."""

    def objects(self, ruleset: Ruleset, port: ServicePort, settings: Settings) -> Sequence[str]:
        """Return the objects that carry a Service port, in the syntax of the kernel's tools."""


def mode_explainer(mode: str) -> ModeExplainer[Any] | None:
    """Return the explainer of a mode; ``None`` if there is none."""
    module = _MODULES.get(mode)
    if module is None:
        return None
    explainer: ModeExplainer[Any] = import_module(module).EXPLAINER
    return explainer
