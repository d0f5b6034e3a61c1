"""The command line of ``./dev soak``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from chaos.world import VARIANTS, Settings

_DESCRIPTION = """\
Runs the daemon in a cluster of network namespaces against a fake API server (HTTPS), with Services
that change continuously, connections through Services that do not change, and random faults.
Prints a line every minute. At the end it checks that no connection failed, that memory use and the
numbers of descriptors and threads are constant, that a restart writes nothing, and that traffic
reaches the endpoints in the API; the exit status is 1 if a check fails. It can be interrupted at
any time and always cleans up. Needs root; the machine's own network is not changed.
"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="./dev soak",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, help="duration in hours")
    length.add_argument("--minutes", type=float, help="duration in minutes; the default is 1")
    parser.add_argument("--mode", choices=("nftables", "iptables"), default="nftables")
    parser.add_argument(
        "--variant", choices=("nft", "legacy"), default="nft", help="of iptables mode"
    )
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20.0, help="changes a second")
    parser.add_argument(
        "--connections", type=float, default=12.0, help="new connections per second"
    )
    parser.add_argument("--gap", type=float, default=8.0, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices")
    parser.add_argument(
        "--without", default="", help="names of faults and hostile objects, separated by commas"
    )
    parser.add_argument(
        "--kill-throughout", action="store_true", help="also end the daemon in the second half"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--log", type=Path, help="write the daemon's log to this file")
    return parser.parse_args(argv)


def settings(chosen: argparse.Namespace) -> Settings:
    """Return the settings for a parsed command line."""
    minutes = chosen.hours * 60 if chosen.hours else chosen.minutes or 1.0
    variant = "nftables" if chosen.mode == "nftables" else chosen.variant
    assert variant in VARIANTS
    return Settings(
        seconds=minutes * 60,
        variant=variant,
        services=chosen.services,
        rate=chosen.rate,
        connections=chosen.connections,
        gap=chosen.gap,
        seed=chosen.seed,
        without=frozenset(filter(None, chosen.without.split(","))),
        kill_throughout=chosen.kill_throughout,
    )
