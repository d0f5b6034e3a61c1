"""Reads the output of ``kubectl get services,endpointslices,nodes -A -o json``."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from svcproxy import limits
from svcproxy.commands.core.exit_codes import CommandError
from svcproxy.files import UnusableFileError, read_bounded
from svcproxy.model.objects import ApiObject, Problem

_BATCH = 200


class _List(msgspec.Struct):
    items: list[msgspec.Raw] = []


def read_objects(
    path: str, annotations: frozenset[str]
) -> tuple[list[ApiObject], Sequence[Problem]]:
    """Read the objects of a List.

    Args:
        path: the path of the file; ``-`` for stdin.
        annotations: the annotation keys of Services to keep.

    Returns:
        The objects, and what is wrong with malformed ones.

    Raises:
        CommandError: the file cannot be read, or is no List in JSON.
    """
    from svcproxy.kube.manifest_files import (  # noqa: PLC0415 - needs the YAML library
        ManifestError,
        read_manifest,
    )

    name = "stdin" if path == "-" else Path(path).name
    objects: list[ApiObject] = []
    problems: list[Problem] = []
    for part in _parts(name, _read(path)):
        try:
            manifest = read_manifest(f"{name}.json", part, annotations)
        except ManifestError as error:
            problems.append(error.problem)
        else:
            objects += [obj for obj in manifest.objects.values() if obj is not None]
            problems += manifest.problems
    return objects, problems


def _read(path: str) -> bytes:
    limit = limits.MANIFEST_FOLDER_BYTES
    if path == "-":
        data = sys.stdin.buffer.read(limit + 1)
        if len(data) > limit:
            raise CommandError(f"stdin has more than {limit} bytes: select fewer objects")
        return data
    try:
        return read_bounded(Path(path), limit)
    except UnusableFileError as error:
        raise CommandError(f"{path} {error}") from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; name a file to read") from error


def _parts(name: str, data: bytes) -> Iterator[bytes]:
    """Yield lists of a few objects each, which stay below the limits of a manifest file."""
    try:
        items = msgspec.json.decode(data, type=_List).items
    except msgspec.DecodeError as error:
        message = f"{name} is no List in JSON ({error}): use kubectl get … -A -o json"
        raise CommandError(message) from error
    for start in range(0, len(items), _BATCH):
        part = b",".join(map(bytes, items[start : start + _BATCH]))
        yield b'{"kind":"List","items":[' + part + b"]}"
