"""A folder of manifests as a source of objects, for experiments and small set-ups.

Files named ``*.yaml``, ``*.yml`` or ``*.json`` directly in the folder are read, also through the
symbolic links of a mounted ConfigMap. If a file is broken or half written, the objects of its last
valid version stay in force.
"""

import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog

from svcproxy import limits, threads
from svcproxy.files import FileTooLargeError, UnusableFileError, read_bounded
from svcproxy.kube.manifest_files import Manifest, ManifestError, read_manifest
from svcproxy.kube.source import Sink, SourceError, WatchState
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, ObjectKey, Problem
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_SUFFIXES = (".yaml", ".yml", ".json")
_STOP_SECONDS = 1.0
_RETRY_SECONDS = 1.0
# A change is reported after two quiet steps, or after the debounce time at the latest.
_STEP_MS = 10
_DEBOUNCE_MS = 30
# How often the watch returns without a change, so that the thread can check the time.
_WAKE_MS = 100

_FOLDER_LIMITS = {
    "files": f"{limits.MANIFEST_FILES} files",
    "folder_bytes": f"{limits.MANIFEST_FOLDER_BYTES} bytes",
}

_Signature = tuple[int, int, int, int]


class _File(msgspec.Struct):
    """A file as last read: its objects, with the last valid state of those that are malformed."""

    signature: _Signature
    objects: dict[ObjectKey, ApiObject | None]
    problems: tuple[Problem, ...]


class ManifestSource:
    """Delivers the Services, EndpointSlices, ServiceCIDRs and this node's Node of a folder.

    If two files hold the same object, the first file by name counts. Node objects of other nodes
    are ignored. The folder need not hold a Node.

    Args:
        directory: the folder.
        node_name: the name of this node.
        rescan_seconds: how often to check the files even if no change was reported.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(
        self,
        directory: Path,
        node_name: str,
        *,
        rescan_seconds: float = 10.0,
        annotations: frozenset[str] = frozenset(),
    ) -> None:
        self._directory = directory
        self._node = (Kind.NODE, NamespacedName("", node_name))
        self._rescan_seconds = rescan_seconds
        self._annotations = annotations
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._missing = False
        self._synced = False
        self._scanned = 0.0
        self._files: dict[str, _File] = {}
        self._delivered: dict[ObjectKey, ApiObject] = {}
        self._reported: frozenset[Problem] = frozenset()

    def watches(self) -> Mapping[Kind, WatchState]:
        """Return how far the folder is, for all kinds alike; safe from any thread."""
        return dict.fromkeys(Kind, WatchState("", self._synced, self._scanned))

    def start(self, sink: Sink) -> None:
        """Start delivering, in a thread of the source.

        Raises:
            SourceError: there is no such folder, or it cannot be read.
        """
        _check_folder(self._directory)
        self._thread = threads.spawn(partial(self._run, sink), "manifests")

    def stop(self) -> None:
        """Stop watching, and wait at most a second for the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _run(self, sink: Sink) -> None:
        while not self._stopping.is_set():
            threads.working(limits.THREAD_SCAN_SECONDS)
            try:
                self._scan(sink)
                if not self._synced:
                    for kind in Kind:
                        sink.synced(kind)
                    self._synced = True
                self._missing = False
                self._watch(sink)
            except FileNotFoundError:
                # Keep the delivered objects: an unmounted folder does not mean deletion.
                if not self._missing:
                    _log.warning("manifests.missing", folder=str(self._directory))
                self._missing = True
                self._stopping.wait(_RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - the thread must not die silently
                _log.exception("manifests.failed", folder=str(self._directory))
                self._stopping.wait(_RETRY_SECONDS)

    def _watch(self, sink: Sink) -> None:
        """Scan at every change, until stopped or until the folder was replaced."""
        from watchfiles import watch  # noqa: PLC0415 - load it only if manifests are used

        identity = _identity(self._directory)
        scanned = -self._rescan_seconds  # scan first: files may have changed before the watch began
        for changes in watch(
            self._directory,
            watch_filter=None,
            recursive=False,
            step=_STEP_MS,
            debounce=_DEBOUNCE_MS,
            rust_timeout=_WAKE_MS,
            yield_on_timeout=True,
            stop_event=self._stopping,
            raise_interrupt=False,
        ):
            threads.working(limits.THREAD_SCAN_SECONDS)  # the watch yields every 100 ms
            if changes or time.monotonic() - scanned >= self._rescan_seconds:
                scanned = time.monotonic()
                if _identity(self._directory) != identity:
                    return
                self._scan(sink)

    def _scan(self, sink: Sink) -> None:
        """Read the files that changed, and deliver the resulting changes."""
        files: dict[str, _File] = {}
        size = 0
        paths = _manifests(self._directory)
        for number, path in enumerate(paths):
            try:
                size += _folder_share(path.stat().st_size)
                limit = _folder_limit(number, size)
                files[path.name] = self._exclude(path, limit) if limit else self._read(path)
            except FileNotFoundError:
                continue  # deleted since the folder was listed, or a dangling link
            except (OSError, MemoryError) as error:
                # The cause may be outside the file, so the next scan reads it again.
                files[path.name] = self._keep_objects(path, _unreadable(path, error))
        self._files = files
        self._deliver(sink)
        self._scanned = time.time()

    def _exclude(self, path: Path, limit: str) -> _File:
        """Keep the last valid objects of a file that exceeds a limit of the folder."""
        known = self._files.get(path.name)
        reason = f"is not read: the folder exceeds {_FOLDER_LIMITS[limit]}; make it smaller"
        problem = Problem(None, None, "", reason, path.name)
        if known is None or known.problems != (problem,):
            REFUSALS.count("manifests", limit)
        return self._keep_objects(path, problem)

    def _keep_objects(self, path: Path, problem: Problem) -> _File:
        known = self._files.get(path.name)
        return _File((0, 0, 0, 0), known.objects if known is not None else {}, (problem,))

    def _read(self, path: Path) -> _File:
        known = self._files.get(path.name)
        kept = known.objects if known is not None else {}
        state = path.stat()
        signature: _Signature = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if known is not None and known.signature == signature:
            return known
        try:
            data = read_bounded(path, limits.MANIFEST_FILE_BYTES, only_regular=True)
            if kept and not data.strip():
                reason = "is empty: delete the file to delete its objects"
                return _File(signature, kept, (Problem(None, None, "", reason, path.name),))
            manifest = read_manifest(path.name, data, self._annotations)
        except ManifestError as error:
            if error.limit:
                REFUSALS.count("manifests", error.limit)
            return _File(signature, kept, (error.problem,))
        except (OSError, MemoryError):
            raise
        except UnusableFileError as error:
            return _File(signature, kept, (_unreadable(path, error),))
        except Exception as error:  # noqa: BLE001 - logged with its traceback
            # The other files are still read.
            _log.exception("manifest.failed", file=path.name)
            reason = f"internal error: {type(error).__name__}"
            return _File(signature, kept, (Problem(None, None, "", reason, path.name),))
        return _File(signature, self._with_last_valid(manifest, kept), manifest.problems)

    def _with_last_valid(
        self, manifest: Manifest, kept: dict[ObjectKey, ApiObject | None]
    ) -> dict[ObjectKey, ApiObject | None]:
        """Return a file's objects: the valid ones, and the last valid state of malformed ones."""
        # A malformed object without a name may be any of the objects that are missing now.
        chosen = {key: kept[key] for key in kept if manifest.nameless or key in manifest.failed}
        for key, obj in manifest.objects.items():
            if key[0] is Kind.NODE and key != self._node:
                _log.debug("manifest.ignored", kind=key[0], name=str(key[1]), reason="other node")
            else:
                chosen[key] = obj
        return chosen

    def _deliver(self, sink: Sink) -> None:
        """Deliver the difference between the last delivered objects and the files."""
        wanted, problems = self._merge_files()
        changed: dict[ObjectKey, ApiObject | None] = {
            key: None for key in self._delivered if wanted.get(key) is None
        }
        for key, obj in wanted.items():
            old = self._delivered.get(key)
            if obj is not None and old is not obj and old != obj:
                changed[key] = obj
        if changed:
            sink.take(changed)
        self._delivered = {key: obj for key, obj in wanted.items() if obj is not None}
        for problem in problems:
            if problem not in self._reported:
                sink.rejected(problem)
        self._reported = frozenset(problems)

    def _merge_files(self) -> tuple[dict[ObjectKey, ApiObject | None], list[Problem]]:
        wanted: dict[ObjectKey, ApiObject | None] = {}
        owner: dict[ObjectKey, str] = {}
        problems: list[Problem] = []
        for name, file in sorted(self._files.items()):
            problems += file.problems
            for key, obj in file.objects.items():
                if key in owner:
                    reason = f"is in {owner[key]} already, which takes precedence"
                    problems.append(Problem(*key, "", reason, name))
                else:
                    owner[key] = name
                    wanted[key] = obj
        return wanted, problems


def read_folder(
    directory: Path, annotations: frozenset[str] = frozenset()
) -> tuple[list[ApiObject], list[Problem]]:
    """Read the manifests of a folder once, with the limits of ``ManifestSource``.

    Args:
        directory: the folder.
        annotations: the annotation keys of Services to keep.

    Returns:
        The objects, of all nodes, and what is wrong with malformed ones. If two files hold the
        same object, the first file by name counts.

    Raises:
        SourceError: there is no such folder, or it cannot be read.
    """
    _check_folder(directory)
    objects: dict[ObjectKey, ApiObject | None] = {}
    problems: list[Problem] = []
    size = 0
    for number, path in enumerate(_manifests(directory)):
        try:
            size += _folder_share(path.stat().st_size)
            limit = _folder_limit(number, size)
            if limit:
                raise SourceError(f"{directory} exceeds {_FOLDER_LIMITS[limit]}: make it smaller")
            data = read_bounded(path, limits.MANIFEST_FILE_BYTES, only_regular=True)
            manifest = read_manifest(path.name, data, annotations)
        except ManifestError as error:
            problems.append(error.problem)
        except (OSError, UnusableFileError) as error:
            problems.append(_unreadable(path, error))
        else:
            problems += manifest.problems
            objects = manifest.objects | objects
    return [obj for obj in objects.values() if obj is not None], problems


def _check_folder(directory: Path) -> None:
    if not directory.is_dir():
        what = "is not a folder" if directory.exists() else "does not exist"
        raise SourceError(f"manifest folder {directory} {what}: create it")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise SourceError(f"manifest folder {directory} is not readable: change its mode")


def _folder_limit(number: int, size: int) -> str:
    """Return the limit of the folder that a file exceeds; empty if it exceeds none."""
    if number >= limits.MANIFEST_FILES:
        return "files"
    return "folder_bytes" if size > limits.MANIFEST_FOLDER_BYTES else ""


def _folder_share(size: int) -> int:
    """Return a file's share of the folder size: 0 if the file is too large to be read."""
    return size if size <= limits.MANIFEST_FILE_BYTES else 0


def _unreadable(path: Path, error: OSError | MemoryError | UnusableFileError) -> Problem:
    if isinstance(error, FileTooLargeError):
        REFUSALS.count("manifests", "file_bytes")
    if isinstance(error, UnusableFileError):
        reason = str(error)
    else:
        cause = error.strerror if isinstance(error, OSError) else "out of memory"
        reason = f"cannot be read: {cause}"
    return Problem(None, None, "", reason, path.name)


def _manifests(directory: Path) -> list[Path]:
    """List the manifest files, without hidden ones (of editors and ConfigMap mounts)."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def _identity(directory: Path) -> tuple[int, int]:
    """Return an identity of a folder that changes when it is replaced.

    Raises:
        FileNotFoundError: the folder is missing.
    """
    state = directory.stat()
    return state.st_dev, state.st_ino
