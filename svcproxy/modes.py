"""The registry of modes: a backend is a folder and one line here."""

from collections.abc import Iterator
from importlib import import_module

from svcproxy.backends.mode_spec import ModeSpec

_MODULES = {
    "iptables": "svcproxy.backends.iptables.mode",
    "nftables": "svcproxy.backends.nftables.mode",
    "ipvs": "svcproxy.backends.ipvs.mode",
    "recording": "svcproxy.backends.recording.mode",
}
"""The module of each mode that has its ``MODE``; it is imported only if the mode is used."""


def mode_spec(name: str) -> ModeSpec:
    """Return what the mode of that name declares."""
    spec = import_module(_MODULES[name]).MODE
    assert isinstance(spec, ModeSpec)
    return spec


def all_modes() -> Iterator[ModeSpec]:
    """Yield all modes; this imports the ``mode`` module of each backend, but no other."""
    return map(mode_spec, _MODULES)
