"""Hostile files: each is refused in one line and affects no other file of the folder."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy import limits
from svcproxy.kube import manifests
from svcproxy.kube.core.yaml_limits import YamlLimitError, check_yaml
from svcproxy.kube.manifest_files import ManifestError, read_manifest
from svcproxy.kube.manifests import ManifestSource
from svcproxy.refusals import REFUSALS
from tests.fakes.sink import RecordingSink

GOOD = "kind: Service\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n"
LAUGHS = "a0: &a0 {k: v, l: w}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)
)
HOSTILE = {
    "depth.yaml": (b"[" * 100_000, "nested more than 100 deep", "yaml_depth"),
    "block.yaml": (b"- " * 100_000, "nested more than 100 deep", "yaml_depth"),
    "depth.json": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply", "yaml_depth"),
    "laughs.yaml": (LAUGHS.encode(), "more than 1000000 values", "yaml_nodes"),
    "self.yaml": (
        b"kind: List\nitems: &i [{kind: List, items: *i}]",
        "alias i refers",
        "yaml_depth",
    ),
    "digits.yaml": (b"a: " + b"1" * 10_000, "more than 64 characters", ""),
    "hex.yaml": (b"a: 0x" + b"f" * 10_000, "more than 64 characters", ""),
    "sixty.yaml": (b"a: 1" + b":59" * 10_000, "more than 64 characters", ""),
    "digits.json": (b'{"a": ' + b"1" * 10_000 + b"}", "not valid JSON", ""),
    "bytes.yaml": (b"kind: \xff\xfe", "not valid YAML", ""),
    "bytes.json": (b'{"kind": "\xff"}', "not UTF-8", ""),
    "tag.yaml": (b"!!python/object/apply:os.system [true]", "not valid YAML", ""),
    "key.yaml": (b"? [a]\n: b", "not valid YAML", ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, RecordingSink]]:
    made = tmp_path / "manifests"
    made.mkdir()
    (made / "m-first.yaml").write_text(GOOD.replace("NAME", "first"))
    sink = RecordingSink()
    source = ManifestSource(made, "node-1")
    source.start(sink)
    sink.wait(lambda: sink.names() == {"first"})
    yield made, sink
    source.stop()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_refused_in_one_line(name: str) -> None:
    data, reason, limit = HOSTILE[name]
    with pytest.raises(ManifestError) as caught:
        read_manifest(name, data)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
    assert caught.value.limit == limit


def test_hostile_files_do_not_affect_others(folder: tuple[Path, RecordingSink]) -> None:
    path, sink = folder
    before = REFUSALS.totals()["manifests", "yaml_depth"]
    for name, (data, _, _) in HOSTILE.items():
        (path / name).write_bytes(data)
    os.mkfifo(path / "fifo.yaml")
    (path / "folder.yaml").mkdir()
    (path / "loop.yaml").symlink_to("loop.yaml")
    (path / "zero.yaml").symlink_to("/dev/zero")
    (path / "nowhere.yaml").symlink_to("/nowhere")
    (path / "z-last.yaml").write_text(GOOD.replace("NAME", "last"))
    sink.wait(lambda: sink.names() == {"first", "last"})
    sink.wait(lambda: {problem.origin.split(":")[0] for problem in sink.problems}
              >= {*HOSTILE, "fifo.yaml", "loop.yaml", "zero.yaml"})  # fmt: skip
    assert REFUSALS.totals()["manifests", "yaml_depth"] > before


def test_oversized_files_keep_their_last_valid_objects(
    folder: tuple[Path, RecordingSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sink = folder
    monkeypatch.setattr(limits, "MANIFEST_FILE_BYTES", 200)
    before = REFUSALS.totals()["manifests", "file_bytes"]
    text = GOOD.replace("NAME", "first")
    (path / "m-first.yaml").write_text(text.replace("80", "81") + "#" * 200)
    sink.wait(lambda: sink.problems)
    assert str(sink.problems[0]) == "m-first.yaml: is larger than 200 bytes: make it smaller"
    assert REFUSALS.totals()["manifests", "file_bytes"] == before + 1
    found = sink.service("first")
    assert found
    assert found.ports[0].port == 80


@pytest.mark.parametrize(
    ("constant", "limit"), [("MANIFEST_FILES", "files"), ("MANIFEST_FOLDER_BYTES", "folder_bytes")]
)
def test_a_folder_has_limits(
    folder: tuple[Path, RecordingSink], monkeypatch: pytest.MonkeyPatch, constant: str, limit: str
) -> None:
    path, sink = folder
    before = REFUSALS.totals()["manifests", limit]
    monkeypatch.setattr(limits, constant, 2 if limit == "files" else 350)
    (path / "n.yaml").write_text(GOOD.replace("NAME", "other") + "#" * 120)
    sink.wait(lambda: sink.names() == {"first", "other"})
    (path / "a.yaml").write_text(GOOD.replace("NAME", "added"))
    sink.wait(lambda: sink.problems)
    # The last file by name exceeds the limit now, and keeps its objects.
    sink.wait(lambda: sink.names() == {"added", "first", "other"})
    assert sink.problems[0].origin == "n.yaml"
    assert "is not read: the folder exceeds" in sink.problems[0].reason
    assert REFUSALS.totals()["manifests", limit] == before + 1


def test_invalid_names_are_not_reported_verbatim() -> None:
    text = 'kind: Service\nmetadata: {name: "x\\"\\n-A INPUT -j DROP"}\nspec: {clusterIP: 10.0.0.1}'
    (problem,) = read_manifest("a.yaml", text.encode()).problems
    assert problem.name is None
    assert str(problem).isprintable()
    assert "is not a DNS label" in problem.reason


def test_ordinary_aliases_and_merges_are_accepted() -> None:
    text = (
        "x: &p {port: 80}\nkind: Service\nmetadata: {name: a}\n"
        "spec: {clusterIP: 10.0.0.1, ports: [{<<: *p, name: a}, {<<: *p, name: b}]}\n"
    )
    manifest = read_manifest("a.yaml", text.encode())
    assert manifest.problems == ()
    assert len(manifest.objects) == 1


def test_anchors_may_be_defined_twice() -> None:
    check_yaml(b"a: &x [1]\nb: &x [2, 3]\nc: *x\n---\nd: &x 1\ne: *x\n")


def test_values_behind_aliases_are_counted_at_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "YAML_NODES", 14)
    text = b"a: &a [1, 2, 3]\nb: *a\n"  # 1 for the map, 2 keys, twice 4
    check_yaml(text)
    with pytest.raises(YamlLimitError) as caught:
        check_yaml(text + b"c: *a\n")
    assert (caught.value.line, caught.value.limit) == (3, "yaml_nodes")


def test_an_oversized_file_does_not_count_towards_the_folder_limit(
    folder: tuple[Path, RecordingSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sink = folder
    monkeypatch.setattr(limits, "MANIFEST_FILE_BYTES", 1000)
    monkeypatch.setattr(limits, "MANIFEST_FOLDER_BYTES", 2000)
    (path / "a.yaml").write_bytes(b"#" * 5000)
    (path / "z.yaml").write_text(GOOD.replace("NAME", "other"))
    sink.wait(lambda: sink.names() == {"first", "other"})
    assert [problem.origin for problem in sink.problems] == ["a.yaml"]


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_temporarily_unreadable_file_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **_named: object) -> bytes:
        raise error

    (tmp_path / "a.yaml").write_text(GOOD.replace("NAME", "first"))
    sink = RecordingSink()
    source = ManifestSource(tmp_path, "node-1")
    with monkeypatch.context() as patched:
        patched.setattr(manifests, "read_bounded", failing)
        source._scan(sink)
    assert sink.names() == set()
    assert "cannot be read" in sink.problems[0].reason
    source._scan(sink)
    assert sink.names() == {"first"}


def test_values_in_json_are_counted() -> None:
    """30 MB of empty lists took 1.5 GB of memory and 74 s."""
    data = b'{"kind": "List", "items": [' + b"[]," * limits.YAML_NODES + b"1]}"
    with pytest.raises(ManifestError, match="more than 1000000 values") as caught:
        read_manifest("a.json", data)
    assert caught.value.limit == "yaml_nodes"
