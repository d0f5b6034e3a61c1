"""``svcproxy bundle``: everything that a bug report needs, in one file."""

import argparse
import contextlib
import io
import os
import secrets
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from svcproxy.commands.bundle_parts import Collected, collect
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.core.names import NameHasher, without_secrets
from svcproxy.commands.output import Output
from svcproxy.explain.core.documents import Document

EXAMPLES = """\
  svcproxy bundle                        everything that a bug report needs, in one file
  svcproxy bundle --hash-names           the same without names of Services, namespaces and nodes
  kubectl -n kube-system exec POD -- svcproxy bundle --file - > bundle.tar.gz
"""

_PART_BYTES = 16 << 20
_TOTAL_BYTES = 128 << 20
_KEY_BYTES = 32


class Bundle(Document, frozen=True, kw_only=True):
    """The answer of ``svcproxy bundle``.

    Attributes:
        path: the file that was written.
        size: its size in bytes.
        files: the names of the files in it.
        missing: what could not be collected, with the reasons.
    """

    path: str = ""
    size: int = 0
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument(
        "--file",
        default="",
        metavar="PATH",
        help="the file to write (svcproxy-bundle-NODE-TIME.tar.gz); - for stdout",
    )
    parser.add_argument(
        "--hash-names",
        action="store_true",
        help="replace names of namespaces, Services, EndpointSlices, ports, nodes and zones by"
        " hashes; addresses stay",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    if arguments.file == "-" and (output.as_json or sys.stdout.isatty()):
        raise CommandError("--file - writes binary data to stdout: redirect it, without -o json")
    collected = collect(arguments.socket)
    hasher = None
    if arguments.hash_names:
        hasher = NameHasher(secrets.token_bytes(_KEY_BYTES), collected.names)
    node = hasher.name(collected.node) if hasher else collected.node
    folder = f"svcproxy-bundle-{node}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    files = dict(_bounded(_finished(collected, hasher)))
    data = _archive(folder, files)
    if arguments.file == "-":
        output.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return ExitCode.OK
    path = Path(arguments.file or f"{folder}.tar.gz")
    _write(path, data)
    done = Bundle(path=str(path), size=len(data), files=tuple(files), missing=collected.errors)
    if output.as_json:
        output.document(done)
    else:
        _report(done, output)
    return ExitCode.OK


def _report(done: Bundle, output: Output) -> None:
    output.line(f"{done.path}: {len(done.files)} files, {done.size / 1024:.0f} KiB")
    for reason in done.missing:
        output.line(f"missing: {reason}")


def _finished(collected: Collected, hasher: NameHasher | None) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of files, without secrets, and without names if they are hashed."""
    for name, part in collected.parts.items():
        if not isinstance(part, str):
            value = hasher.value(part) if hasher else part
            text = "".join(
                f"{line}\n" for line in map(_json, value if name.endswith("l") else [value])
            )
        elif hasher:
            text = (
                hasher.rules(part)
                if name.startswith(("desired/", "kernel/"))
                else hasher.text(part)
            )
        else:
            text = part
        yield name, without_secrets(text)
    if collected.errors:
        text = "".join(f"{line}\n" for line in collected.errors)
        yield "errors.txt", without_secrets(hasher.text(text) if hasher else text)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _bounded(files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Yield files that are cut at the limits; a note at the end of a file says so."""
    left = _TOTAL_BYTES
    for name, text in files:
        data = text.encode("utf-8", "replace")
        limit = min(_PART_BYTES, left)
        if len(data) > limit:
            size = len(data)
            data = data[: data.rfind(b"\n", 0, limit) + 1]
            data += b"# cut: %d of %d bytes\n" % (len(data), size)
        left -= min(left, len(data))
        yield name, data


def _archive(folder: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; an unfinished one never has its name."""
    unfinished = ""
    try:
        handle, unfinished = tempfile.mkstemp(prefix=".svcproxy-bundle-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except BaseException as error:
        if unfinished:
            with contextlib.suppress(FileNotFoundError):
                Path(unfinished).unlink()
        if isinstance(error, OSError):
            raise CommandError(f"{path}: {error.strerror}; name another --file") from error
        raise
