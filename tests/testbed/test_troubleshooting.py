"""The outputs in ``docs/troubleshooting.md`` are what the commands print."""

import pytest

from testbed.troubleshooting import BLOCK, NAMES, PAGE, comparable, outputs

BLOCKS = {match["name"]: match["text"] for match in BLOCK.finditer(PAGE.read_text("utf-8"))}
UNSTEADY = {"live", "top", "udp", "vanished", "api-down"}
"""What depends on how fast the machine is, and on connections of other situations."""


def test_every_situation_is_on_the_page() -> None:
    assert set(BLOCKS) == {name.replace("_", "-") for name in NAMES}


@pytest.mark.kernel
def test_the_outputs_are_current() -> None:
    """``python -m testbed.troubleshooting`` writes them."""
    found = outputs()
    for name in BLOCKS.keys() - UNSTEADY:
        assert comparable(found[name]) == comparable(BLOCKS[name]), name
    assert "DELIVERED" in found["live"]
    assert "after a change by nft" in found["vanished"]
