"""What the answers of several nodes say together."""

import msgspec
import pytest

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.kubectl.core.answers import (
    Answer,
    Output,
    answer_of,
    by_value,
    exit_code,
    nodes_text,
)
from svcproxy.kubectl.core.differences import (
    DiffSeen,
    StatusSeen,
    WatchSeen,
    notes_of,
    problems_of,
    suspects,
)
from svcproxy.kubectl.core.services import FrontendSeen, PortSeen, ServiceSeen, frontends_of
from svcproxy.kubectl.core.totals import RowSeen, TopSeen, rows_of


def status(
    node: str, version: int, digest: str, *, silent: float = 3.0, daemon: str = "1.0.0"
) -> Answer[StatusSeen]:
    watch = WatchSeen(
        "Service", str(version or ""), silent_seconds=silent, objects=5, digest=digest
    )
    return Answer(node, 0, StatusSeen("nftables", daemon, [], [watch]))


def problems(*statuses: Answer[StatusSeen]) -> dict[str, list[str]]:
    found = problems_of(statuses, [])
    return {node: lines for node, lines in found.items() if lines}


def test_bookmarks_do_not_make_a_node_behind() -> None:
    """Equal objects count, also if the resourceVersions of the watches differ."""
    assert not problems(status("a", 7, "x"), status("b", 9, "x"), status("c", 8, "x"))


def test_the_newest_objects_are_right_even_if_most_nodes_are_behind() -> None:
    found = problems(status("a", 7, "old"), status("b", 9, "new"), status("c", 7, "old"))
    assert found.keys() == {"a", "c"}
    assert found["a"] == [
        (
            "is behind: 5 Services at rv 7, the others have 5 at 9,"
            " last word from the API server 3 s ago"
        )
    ]


def test_without_resource_versions_the_majority_is_right() -> None:
    found = problems(status("a", 0, "x"), status("b", 0, "x"), status("c", 0, "y"))
    assert found.keys() == {"c"}


def test_objects_of_other_versions_are_not_compared_but_their_silence_is() -> None:
    recent = [status("a", 9, "x"), status("b", 7, "y", daemon="2.0.0")]
    assert not problems(*recent)
    assert notes_of(recent) == [
        "a: svcproxy 1.0.0, nftables mode",
        "b: svcproxy 2.0.0, nftables mode",
    ]
    silent = problems(status("a", 9, "x"), status("b", 7, "y", daemon="2.0.0", silent=400))
    assert silent["b"][0].startswith("may be behind: 5 Services at rv 7, the newest is 9")


def test_suspects_are_the_nodes_that_are_behind() -> None:
    assert suspects([status("a", 7, "old"), status("b", 9, "new")]) == {"a"}


def test_a_kernel_that_differs_is_a_problem_even_without_details() -> None:
    document = msgspec.json.decode(
        b'{"node":{"families":[{"family":"IPv6","kernelAgrees":false,"kernelDifferences":3},'
        b'{"family":"IPv4","kernelAgrees":true}]}}',
        type=DiffSeen,
    )
    found = problems_of([status("a", 1, "x")], [Answer("a", 1, document)])
    assert found == {"a": ["IPv6: kernel differs: 3 differences"]}


@pytest.mark.parametrize(
    ("stdout", "stderr", "problem"),
    [
        (b'{"kind":"Other","apiVersion":"svcproxy.io/v1"}', "", "of another version: Other"),
        (b'{"kind":"Diff","apiVersion":"svcproxy.io/v2"}', "", "of another version: Diff"),
        (b'{"kind":"Diff","apiVersion":"svcproxy.io/v1"}', "", "of another version"),
        (b"not JSON", "", "of another version"),
        (b"", "svcproxy: no daemon\ncommand terminated with exit code 4\n", "no daemon"),
        (b"", "svcproxy: unknown command 'diff': …", "a version without this command"),
        (b"", 'exec: "svcproxy": executable file not found in $PATH', "no svcproxy command"),
        (b"", "", "exit code 4"),
    ],
)
def test_nodes_that_do_not_answer_say_why(stdout: bytes, stderr: str, problem: str) -> None:
    found = answer_of(Output("a", 4, stdout, stderr), DiffSeen, "Diff")
    assert found.document is None
    assert problem in found.problem


def test_lists_of_nodes_are_short() -> None:
    assert nodes_text(["a", "b"], 2) == "both nodes"
    assert nodes_text(["b", "a"], 3) == "a, b"
    assert nodes_text([f"n{n}" for n in range(8)], 9) == "n0, n1, n2, n3, n4 and 3 more"
    assert by_value({"a": 1, "b": 2, "c": 2}) == [(2, ["b", "c"]), (1, ["a"])]


def test_exit_codes() -> None:
    assert exit_code({}, different=False) is ExitCode.OK
    assert exit_code({"a": 4}, different=True) is ExitCode.DIFFERENT
    assert exit_code({"a": 4, "b": 3}, different=False) is ExitCode.NOT_FOUND
    assert exit_code({"a": 137}, different=False) is ExitCode.NO_DAEMON


def frontend(verdict: str, used: int, *, policy: str = "Cluster", known: int = 3) -> ServiceSeen:
    found = FrontendSeen("10.0.0.1", 80, "TCP", "clusterIP", policy, used, known, verdict)
    return ServiceSeen("ns", "web", [PortSeen("http", "IPv4", [found])])


def test_nodes_must_agree_about_cluster_policies_and_known_endpoints() -> None:
    services = {"a": [frontend("forward", 3)], "b": [frontend("reject", 0, known=1)], "c": []}
    (found,) = frontends_of(services)
    assert found.differs[0] == "c does not have it"
    assert "b knows 1 endpoints, a knows 3 endpoints" in found.differs
    assert "b does reject, a does forward" in found.differs


def test_local_policies_and_topology_differ_legitimately() -> None:
    local = {
        "a": [frontend("forward", 3, policy="Local")],
        "b": [frontend("drop", 0, policy="Local")],
    }
    (found,) = frontends_of(local)
    assert (found.differs, found.unserved, found.used) == ((), ("b",), (0, 3))
    (found,) = frontends_of({"a": [frontend("forward", 1)], "b": [frontend("forward", 2)]})
    assert not found.differs


def test_connections_are_added_up() -> None:
    def top(new: float, refused: float | None) -> TopSeen:
        row = RowSeen("ns/web", "http", "TCP", "IPv4", "10.0.0.1", 80, new, 2, refused)
        return TopSeen([row])

    (row,) = rows_of({"a": top(1.5, None), "b": top(2.0, 4.0)})
    assert (row.frontend, row.new_per_second, row.open) == ("10.0.0.1:80/tcp", 3.5, 4)
    assert (row.refused_per_second, row.dropped_per_second) == (4.0, None)
    assert row.nodes == {"a": 1.5, "b": 2.0}
