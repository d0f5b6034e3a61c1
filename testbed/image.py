"""Builds the container image without a container engine, and runs programs in it as in a pod.

buildah executes the Dockerfile in chroots. The base image does not come from a registry:
mmdebstrap builds it from Debian's packages, without the files that Debian's slim images exclude.
This needs root.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SUITE = "bookworm"
_SLIM = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
# Does what a container runtime does for a pod with a read-only root file system. $1 is the tree,
# $2 the capabilities to keep, $3 a list of "outside:inside" folders; the command follows.
_ENTER = """
set -eu
tree=$1 capabilities=$2 folders=$3
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
shift 3
mount --bind "$tree" "$tree"
mount -t tmpfs tmpfs "$tree/tmp"
mount -t tmpfs tmpfs "$tree/run"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mount --bind "$tree/proc/sys" "$tree/proc/sys"
mount -o remount,bind,ro "$tree/proc/sys"
for pair in $folders; do
    mkdir -p "$tree${pair#*:}"
    mount --bind "${pair%%:*}" "$tree${pair#*:}"
done
mount -o remount,bind,ro "$tree"
exec chroot "$tree" env --ignore-environment PATH="$path" \
    setpriv --no-new-privs --bounding-set="$capabilities" -- "$@"
"""


class ImageError(Exception):
    """A build tool failed; the message has its last output."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: a folder with its root file system."""

    tree: Path

    def enter(
        self, *, capabilities: Iterable[str] = (), folders: Mapping[Path, str] | None = None
    ) -> list[str]:
        """Return the words to prepend to a command, so that it runs as in a pod.

        Its root file system and ``/proc/sys`` are read-only, ``/tmp`` and ``/run`` are its own,
        its network namespace is the caller's.

        Args:
            capabilities: the names in a pod's ``capabilities.add`` (``NET_ADMIN``).
            folders: folders outside, and where to mount them inside.
        """
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
        pairs = " ".join(f"{outside}:{inside}" for outside, inside in (folders or {}).items())
        script = ["sh", "-c", _ENTER, "enter", str(self.tree), kept, pairs]
        return ["unshare", "--mount", "--propagation=private", *script]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command without any capability; return when it has ended."""
        words = [*self.enter(), *command]
        return subprocess.run(words, text=True, capture_output=True, timeout=60, check=False)

    def megabytes(self) -> float:
        """The disk usage of all files, in 10^6 bytes."""
        files = (path.lstat() for path in self.tree.rglob("*"))
        return sum(file.st_blocks * 512 for file in files) / 1e6


@contextlib.contextmanager
def built(folder: Path) -> Iterator[Image]:
    """Build the image in an empty folder, and remove everything afterwards.

    Raises:
        ImageError: a step failed.
    """
    tools = _Buildah(folder / "storage")
    try:
        with tools.container("scratch") as (container, tree):
            excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in _SLIM]
            _run(["mmdebstrap", "--quiet", "--variant=minbase", *excluded, _SUITE, str(tree)])
            tools.run("commit", "--quiet", container, "localhost/base")
        tools.build(_wheels(folder / "wheels"), "localhost/svcproxy")
        with tools.container("localhost/svcproxy") as (_, tree):
            yield Image(tree)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Buildah:
    """buildah, with its own storage."""

    def __init__(self, store: Path) -> None:
        self._program = [
            "buildah", "--root", str(store / "root"), "--runroot", str(store / "run"),
            "--storage-driver", "vfs",
        ]  # fmt: skip

    def run(self, *arguments: str) -> str:
        return _run([*self._program, *arguments])

    def build(self, wheels: Path, tag: str) -> None:
        """Execute the Dockerfile; pip installs only from ``wheels``, without network access."""
        self.run(
            "bud", "--isolation=chroot", "--layers=false", "--pull-never", f"--tag={tag}",
            "--build-arg=BASE=localhost/base", "--env=PIP_NO_INDEX=1",
            "--env=PIP_FIND_LINKS=/wheels", f"--volume={wheels}:/wheels:ro", str(_ROOT),
        )  # fmt: skip

    @contextlib.contextmanager
    def container(self, image: str) -> Iterator[tuple[str, Path]]:
        """Create a container of an image; yield its name and the folder with its files."""
        name = self.run("from", "--pull-never", image)
        try:
            yield name, Path(self.run("mount", name))
        finally:
            self.run("rm", name)


def _wheels(folder: Path) -> Path:
    """Download the locked packages; outside the build, so that the host's pip configuration applies."""
    for lock in ("build.lock", "runtime.lock"):
        _run([
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.11",
            f"--dest={folder}", f"--requirement={_ROOT / 'requirements' / lock}",
        ])  # fmt: skip
    return folder


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ImageError(f"{' '.join(command[:8])} …: exit status {done.returncode}\n{tail}")
    return done.stdout.strip()
