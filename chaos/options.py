"""The command line of ``./dev soak``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from chaos.world import VARIANTS, Settings

_DESCRIPTION = """\
Runs the daemon in a cluster of network namespaces against an API server (HTTPS), with Services
that change all the time, connections through Services that do not, and faults at random moments.
It prints a line every minute. At the end it checks that no connection failed, that memory,
descriptors and threads stayed the same, that a restart writes nothing and that the kernel answers
as the objects say; the exit status is 1 if one of these does not hold. It can be ended at any
time and leaves nothing behind. Needs root; the machine's own network is not touched.
"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="./dev soak",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, help="how long it takes")
    length.add_argument("--minutes", type=float, help="the same in minutes; 1 if nothing is given")
    parser.add_argument("--mode", choices=("nftables", "iptables"), default="nftables")
    parser.add_argument(
        "--variant", choices=("nft", "legacy"), default="nft", help="of iptables mode"
    )
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20.0, help="changes a second")
    parser.add_argument("--connections", type=float, default=12.0, help="new ones a second")
    parser.add_argument("--gap", type=float, default=8.0, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=1, help="decides about all that is random")
    parser.add_argument(
        "--without", default="", help="names of faults and hostile objects, with commas"
    )
    parser.add_argument(
        "--kill-throughout", action="store_true", help="end the daemon in the second half, too"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--log", type=Path, help="keep the daemon's log in this file")
    return parser.parse_args(argv)


def settings(chosen: argparse.Namespace) -> Settings:
    """The settings that a command line asks for."""
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
