import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing

from svcproxy.kube import manifests
from svcproxy.kube.manifests import ManifestSource
from svcproxy.kube.source import SourceError
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import Node
from tests.fakes.sink import RecordingSink, eventually


def service(name: str, port: object = 80) -> str:
    return (
        f"kind: Service\nmetadata: {{name: {name}}}\n"
        f"spec:\n  clusterIP: 10.0.0.1\n  ports: [{{port: {port}}}]\n---\n"
    )


class Folder:
    """A folder of manifests, and a source that delivers it to a sink."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sink = RecordingSink()
        self.source = ManifestSource(path, "node-1")

    def start(self) -> RecordingSink:
        self.source.start(self.sink)
        self.sink.wait_synced()
        return self.sink

    def write(self, name: str, *contents: str) -> Path:
        path = self.path / name
        path.write_text("".join(contents))
        return path

    def port(self, name: str) -> int:
        found = self.sink.service(name)
        return found.ports[0].port if found else 0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "manifests").mkdir()
    folder = Folder(tmp_path / "manifests")
    yield folder
    folder.source.stop()


def test_an_empty_folder_is_synced(folder: Folder) -> None:
    sink = folder.start()
    sink.wait(lambda: sorted(sink.syncs) == sorted(Kind))
    assert sink.objects == {}


def test_all_files_are_delivered_before_synced(folder: Folder) -> None:
    folder.write("a.yaml", service("a"), service("b"))
    folder.write("c.yml", service("c"))
    folder.write("d.json", '{"kind": "Node", "metadata": {"name": "node-1"}}')
    folder.write("e.txt", "neither read", service("e"))
    folder.write(".f.yaml", "nor this", service("f"))
    (folder.path / "g.yaml").mkdir()
    sink = folder.start()
    assert sink.names() == {"a", "b", "c"}
    assert sink.objects[Kind.NODE, NamespacedName("", "node-1")] == Node("node-1")
    assert sink.problems == []


def test_changes_arrive(folder: Folder) -> None:
    file = folder.write("a.yaml", service("a"), service("b"))
    sink = folder.start()
    folder.write("a.yaml", service("a", 81), service("b"))
    sink.wait(lambda: folder.port("a") == 81)
    folder.write("b.yaml", service("c"))
    sink.wait(lambda: sink.names() == {"a", "b", "c"})
    folder.write("b.yaml", "# nothing")
    sink.wait(lambda: sink.names() == {"a", "b"})
    file.unlink()
    sink.wait(lambda: sink.names() == set())
    assert [str(obj.name) for obj in sink.updates] == [
        "default/a", "default/b", "default/a", "default/c"
    ]  # fmt: skip


def test_a_change_between_the_first_scan_and_the_watch_is_detected(folder: Folder) -> None:
    sink = folder.start()
    for number in range(5):
        folder.write(f"{number}.yaml", service(f"s{number}"))
    sink.wait(lambda: len(sink.names()) == 5, seconds=3)


def test_a_broken_file_keeps_its_objects_until_it_is_repaired(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    folder.write("b.yaml", service("b"))
    sink = folder.start()
    folder.write("a.yaml", service("a", 81), "spec: [")
    sink.wait(lambda: sink.problems)
    folder.write("b.yaml", service("b", 81))
    sink.wait(lambda: folder.port("b") == 81)
    assert len(sink.problems) == 1
    assert str(sink.problems[0]).startswith("a.yaml:8: not valid YAML: ")
    assert folder.port("a") == 80
    folder.write("a.yaml", service("a", 82))
    sink.wait(lambda: folder.port("a") == 82)
    folder.write("a.yaml", service("a", 81), "spec: [")
    sink.wait(lambda: len(sink.problems) == 2)
    assert sink.deletes == []


def test_a_file_that_is_being_written_keeps_its_objects(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    sink = folder.start()
    folder.write("a.yaml", "")
    sink.wait(lambda: sink.problems)
    assert "is empty" in sink.problems[0].reason
    folder.write("a.yaml", service("a", 81))
    sink.wait(lambda: folder.port("a") == 81)
    assert sink.deletes == []


def test_a_malformed_object_keeps_its_last_valid_state_and_affects_no_other(folder: Folder) -> None:
    folder.write("a.yaml", service("a"), service("b"), service("c"))
    sink = folder.start()
    folder.write("a.yaml", service("a", 0), service("b", 81))
    sink.wait(lambda: sink.names() == {"a", "b"})
    assert (folder.port("a"), folder.port("b")) == (80, 81)
    assert [problem.reason for problem in sink.problems] == ["0 is not a port"]
    folder.write("a.yaml", service("b", 81))
    sink.wait(lambda: sink.names() == {"b"})


def test_a_nameless_malformed_object_keeps_all_missing_ones(folder: Folder) -> None:
    folder.write("a.yaml", service("a"), service("b"))
    sink = folder.start()
    folder.write("a.yaml", service("a", 81), service("", 80))
    sink.wait(lambda: folder.port("a") == 81)
    assert sink.names() == {"a", "b"}


def test_the_first_file_by_name_counts(folder: Folder) -> None:
    folder.write("b.yaml", service("a", 82))
    sink = folder.start()
    first = folder.write("a.yaml", service("a", 81))
    sink.wait(lambda: folder.port("a") == 81)
    sink.wait(lambda: sink.problems)
    assert (
        str(sink.problems[0])
        == "b.yaml Service default/a: is in a.yaml already, which takes precedence"
    )
    first.unlink()
    sink.wait(lambda: folder.port("a") == 82)
    assert sink.deletes == []


def test_only_this_nodes_node_object_is_delivered(folder: Folder) -> None:
    folder.write("a.yaml", "kind: Node\nmetadata: {name: node-2}\n")
    sink = folder.start()
    assert sink.objects == {}
    folder.write("b.yaml", "kind: Node\nmetadata: {name: node-1}\n")
    sink.wait(lambda: sink.names(Kind.NODE) == {"node-1"})
    folder.write("b.yaml", "# gone")
    sink.wait(lambda: sink.deletes == [(Kind.NODE, NamespacedName("", "node-1"))])


def test_a_service_that_becomes_headless_is_deleted(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    sink = folder.start()
    folder.write("a.yaml", service("a").replace("10.0.0.1", "None"))
    sink.wait(lambda: sink.names() == set())


def test_updates_of_a_mounted_config_map_are_detected(folder: Folder) -> None:
    """The kubelet writes a new folder and moves the ``..data`` link (AtomicWriter)."""

    def publish(version: str, text: str) -> None:
        (folder.path / version).mkdir()
        (folder.path / version / "a.yaml").write_text(text)
        (folder.path / "..data_tmp").symlink_to(version)
        (folder.path / "..data_tmp").rename(folder.path / "..data")

    publish("..2024_1", service("a"))
    (folder.path / "a.yaml").symlink_to("..data/a.yaml")
    sink = folder.start()
    assert folder.port("a") == 80
    publish("..2024_2", service("a", 81))
    sink.wait(lambda: folder.port("a") == 81)
    shutil.rmtree(folder.path / "..2024_1")
    assert sink.deletes == []


def test_a_dangling_link_is_ignored(folder: Folder) -> None:
    (folder.path / "a.yaml").symlink_to("nowhere")
    assert folder.start().problems == []


def test_a_file_that_cannot_be_read_keeps_its_objects(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder.write("a.yaml", service("a"))
    sink = folder.start()

    def denied(*_: object, **_more: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "read_bounded", denied)
        os.utime(file, ns=(1, 1))
        sink.wait(lambda: sink.problems)
    assert str(sink.problems[0]) == "a.yaml: cannot be read: Permission denied"
    assert sink.names() == {"a"}


def test_a_rescan_detects_changes_without_events(folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text(service("a"))
    (folder.path / "a.yaml").symlink_to(outside)
    folder.source = ManifestSource(folder.path, "node-1", rescan_seconds=0.2)
    sink = folder.start()
    outside.write_text(service("a", 81))
    sink.wait(lambda: folder.port("a") == 81)


def test_a_missing_folder_deletes_nothing_and_is_used_when_it_is_back(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    folder.source = ManifestSource(folder.path, "node-1", rescan_seconds=0.1)
    with structlog.testing.capture_logs() as logs:
        sink = folder.start()
        away = folder.path.rename(folder.path.with_name("away"))
        eventually(lambda: any(entry["event"] == "manifests.missing" for entry in logs))
        (away / "a.yaml").write_text(service("a", 81))
        away.rename(folder.path)
        sink.wait(lambda: folder.port("a") == 81)
    assert sink.deletes == []


def test_a_replaced_folder_is_watched(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    folder.source = ManifestSource(folder.path, "node-1", rescan_seconds=1.0)
    sink = folder.start()
    folder.path.rename(folder.path.with_name("away"))
    folder.path.mkdir()
    folder.write("b.yaml", service("b"))
    sink.wait(lambda: sink.names() == {"b"})
    folder.write("b.yaml", service("b", 81))
    sink.wait(lambda: folder.port("b") == 81, seconds=0.6)


def test_the_thread_survives_a_failing_sink(folder: Folder) -> None:
    sink = folder.start()
    with structlog.testing.capture_logs() as logs:
        sink.fail_next_update = RuntimeError("full")
        folder.write("a.yaml", service("a"))
        sink.wait(lambda: sink.names() == {"a"})
    assert any(entry["event"] == "manifests.failed" for entry in logs)


def test_stop_ends_the_thread_immediately(folder: Folder) -> None:
    folder.start()
    folder.source.stop()
    assert not any(thread.name == "manifests" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("make", "words"),
    [(None, "does not exist: create it"), ("file", "is not a folder: create it")],
)
def test_an_unusable_folder_is_refused(tmp_path: Path, make: str | None, words: str) -> None:
    path = tmp_path / "x"
    if make:
        path.write_text("")
    with pytest.raises(SourceError, match=f"manifest folder .*/x {words}"):
        ManifestSource(path, "node-1").start(RecordingSink())
