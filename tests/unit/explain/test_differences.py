"""Differences and repairs as values and in words."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.admin.core.protocol import Repair
from svcproxy.explain.core.diff_documents import operations_text, persisting, repair_info
from svcproxy.explain.core.differences import (
    LISTED,
    Difference,
    DifferenceKind,
    differing_lines,
    grouped,
)
from svcproxy.explain.core.ipvs_rules import template_key
from svcproxy.explain.core.ipvs_templates import templates
from svcproxy.model.names import IPFamily, Protocol, ServicePortName

MISSING = DifferenceKind.MISSING


def name(number: int) -> ServicePortName:
    return ServicePortName("default", f"web{number}", "", Protocol.TCP)


def described(number: int) -> Difference:
    return Difference(MISSING, f"element {number}", (name(number),), f"text {number}")


class TestGrouping:
    def test_few_differences_are_listed(self) -> None:
        found = grouped(range(LISTED), "elements", described, lambda n: (name(n),))
        assert [str(each) for each in found] == [f"element {n}: missing" for n in range(LISTED)]

    def test_many_are_one_difference_that_names_all_service_ports(self) -> None:
        (found,) = grouped(range(1234), "elements of map all3", described, lambda n: (name(n),))
        assert str(found) == "1,234 elements of map all3: missing"
        assert set(found.service_ports) == set(map(name, range(1234)))
        assert found.desired == "text 0\ntext 1\ntext 2\n…"
        assert found.actual == ""

    def test_none_is_none(self) -> None:
        assert grouped((), "elements", described, lambda _: ()) == []


@pytest.mark.parametrize(
    ("desired", "actual", "expected"),
    [
        ("abc", "abc", ("", "")),
        ("abc", "ac", ("b", "")),
        ("ac", "abc", ("", "b")),
        ("abcd", "axyd", ("b c", "x y")),
        ("aa", "a", ("a", "")),
        ("", "ab", ("", "a b")),
    ],
)
def test_equal_lines_at_both_ends_are_left_out(
    desired: str, actual: str, expected: tuple[str, str]
) -> None:
    found = differing_lines(list(desired), list(actual))
    assert tuple(text.replace("\n", " ") for text in found) == expected


class TestPersisting:
    def test_only_what_both_readings_have_counts(self) -> None:
        assert persisting([described(1), described(2)], [described(2), described(3)]) == [
            described(2)
        ]

    def test_a_summary_may_have_another_number(self) -> None:
        before = Difference(MISSING, "1,234 elements of map all3")
        after = Difference(MISSING, "987 elements of map all3")
        assert persisting([before], [after]) == [after]

    def test_the_kind_counts(self) -> None:
        assert not persisting([described(1)], [Difference(DifferenceKind.UNEXPECTED, "element 1")])


class TestRepairs:
    @pytest.mark.parametrize(
        ("operations", "text"),
        [
            ({"element_added": 2}, "2 elements added"),
            ({"element_added": 1, "set_deleted": 1}, "1 element added, 1 set deleted"),
            ({"restore": 1, "chain_written": 1234}, "1,234 chains written"),
            ({"set_entry_added": 2, "message": 4}, "2 set entries added"),
            ({"address_bound": 2}, "2 addresses bound"),
            ({"restore": 3}, "rules written"),
            ({}, "rules written"),
        ],
    )
    def test_operations_are_told(self, operations: dict[str, int], text: str) -> None:
        assert operations_text(operations) == text

    @pytest.mark.parametrize(
        ("process", "pid", "reported", "text"),
        [
            ("nft", 4711, True, "12 ms after a change by nft (pid 4711)"),
            ("", 0, True, "12 ms after a change by an unknown process"),
            ("", 5, True, "12 ms after a change by a process (pid 5)"),
            ("", 0, False, "in 12 ms by a resync that found the change"),
            (
                "a\nb",
                0,
                False,
                r"in 12 ms by a resync that found the change, probably made by a\nb",
            ),
        ],
    )
    def test_the_culprit_is_named_in_one_line(
        self,
        process: str,
        pid: int,
        reported: bool,  # noqa: FBT001
        text: str,
    ) -> None:
        repair = Repair(
            1, 1.0, IPFamily.IPV4, {"element_added": 1}, process, pid, 0.012, reported=reported
        )
        assert repair_info(repair).text == f"1 element added {text}"


CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0A83201 0000 0A600003 0050 0AF40102 1F90 NONE          10800
TCP C0A83201 A1B2 0A600003 0050 0AF40102 1F90 ESTABLISHED     899
UDP C0A83202 0000 0A600004 0035 0AF40103 0035 ASSURED         300
TCP fd00:0000:0000:0000:0000:0000:0000:0001 0000 fd00:0010:0096:0000:0000:0000:0000:0003 0050 fd00:0010:0244:0001:0000:0000:0000:0002 1F90 NONE          10800
""".splitlines()


class TestTemplates:
    def test_only_templates_of_the_family_are_read(self) -> None:
        assert templates(CONNECTIONS, IPFamily.IPV4) == {
            template_key("tcp", "10.96.0.3:80", ip_address("192.168.50.1").packed): (
                "10.244.1.2:8080"
            ),
            template_key("udp", "10.96.0.4:53", ip_address("192.168.50.2").packed): (
                "10.244.1.3:53"
            ),
        }
        assert templates(CONNECTIONS, IPFamily.IPV6) == {
            template_key("tcp", "[fd00:10:96::3]:80", ip_address("fd00::1").packed): (
                "[fd00:10:244:1::2]:8080"
            )
        }

    @given(st.lists(st.text()), st.sampled_from(list(IPFamily)))
    def test_other_lines_are_skipped(self, lines: list[str], family: IPFamily) -> None:
        assert templates([f"TCP {line} 0000 {line}" for line in lines], family) is not None
