"""A kernel with IPVS on any machine: User Mode Linux, which is a process like any other.

The guest's root file system is this machine's, read-only over hostfs; ``/run`` is its own, and
temporary files go there. It has one processor, needs no privilege, device or KVM, and boots in
about two seconds. System calls cost there what they cost here, but starting a program takes some
ten times as long. Its clock is the real one.

By hand: ``python -m testbed.uml -- COMMAND...`` runs a command in it, as root in this folder.
"""

import argparse
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.machines import Finished, MachineError, read, read_finished, write_start

NAME = "linux.uml"
LIB_MODULES = Path("/lib/modules")
INIT = Path(__file__).with_name("uml_init.sh")
MODULES = (
    *("ipv6", "dummy", "veth", "bridge", "br_netfilter"),
    *("nf_conntrack_netlink", "nf_nat", "iptable_nat", "iptable_filter", "iptable_mangle"),
    *("ip6table_nat", "ip6table_filter", "ip6table_mangle", "ipt_REJECT", "ip6t_REJECT"),
    *("xt_addrtype", "xt_bpf", "xt_comment", "xt_conntrack", "xt_ipvs", "xt_mark", "xt_multiport"),
    *("xt_MASQUERADE", "xt_nat", "xt_physdev", "xt_recent", "xt_sctp", "xt_set", "xt_statistic"),
    *("xt_tcpudp", "xt_LOG", "nfnetlink_acct", "xt_nfacct"),
    *("ip_set", "ip_set_bitmap_port", "ip_set_hash_ip", "ip_set_hash_ipport", "ip_set_hash_net"),
    *("ip_set_hash_ipportip", "ip_set_hash_ipportnet", "ip_set_list_set"),
    *("ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_lc", "ip_vs_wlc", "ip_vs_lblc", "ip_vs_lblcr"),
    *("ip_vs_sh", "ip_vs_dh", "ip_vs_sed", "ip_vs_nq", "ip_vs_mh", "ip_vs_fo", "ip_vs_ovf"),
)
"""Loaded from the start, IPv6 before the others: IPVS looks for it only when it is loaded itself.
The kernel would find most of them by itself, but at a program's start each."""
MEMORY = 2 << 30
"""Bytes that the guest takes for its memory; this machine gives them as they are used."""
SHARED_MEMORY = Path("/dev/shm")
_numbers = itertools.count()
_POLL = 0.1  # seconds between looks at the output


class Guest:
    """A guest that runs a command; as a context manager it boots, and is gone at the end.

    Args:
        command: the command line, run as root.
        folder: the working folder; not below ``/run``, which the guest does not share.
        timeout: seconds that all of it may take.
        results: a folder that the guest may write to, under the same name.

    Raises:
        MachineError: User Mode Linux is not installed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        results: Path | None = None,
    ) -> None:
        self._kernel = find_kernel()
        self._processor = _processor()
        self._timeout = timeout
        self._temporary = tempfile.TemporaryDirectory(prefix="svcproxy-uml-")
        self.files = Path(self._temporary.name)
        """Where its own files are while it is there; all its processes name the folder."""
        self._share = self.files / "share"
        self._share.mkdir()
        write_start(self._share, command, folder, "\n".join(_preparation(results)))
        self._console = self.files / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self._end = ""

    def __enter__(self) -> Self:
        self._deadline = time.monotonic() + self._timeout
        with self._console.open("wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, "TMPDIR": str(_memory_folder() or self.files)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The kernel and the processes of its own that it traces end together; Ctrl-C at
                # the terminal is for the one who cleans up.
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()
        self._temporary.cleanup()

    @property
    def output(self) -> str:
        """What the command has written so far."""
        return read(self._share / "output")

    def wait(self, echo: Callable[[bytes], object] = len) -> Finished:
        """Wait for the command's end; ``echo`` gets its output piece by piece, as it comes.

        Raises:
            MachineError: it did not come to its end; the message ends with what was seen of it.
        """
        position, running = 0, True
        while running:
            running = self.running(_POLL)
            piece = self._output_from(position)
            position += len(piece)
            echo(piece)
        finished = read_finished(self._share)
        if finished is not None:
            return finished
        seen = self.output or read(self._console)
        raise MachineError(f"the command in User Mode Linux {self._end}:\n{seen}")

    def running(self, patience: float) -> bool:
        """Whether it still runs when it has been waited for so many seconds.

        One that has taken too long in all is ended.
        """
        assert self._process is not None
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            if time.monotonic() < self._deadline:
                return True
            self._end = f"was not done after {self._timeout:g} s"
            self._kill()
        else:
            status = self._process.returncode
            self._end = self._end or f"did not end; the guest did, with status {status}"
        return False

    def _output_from(self, position: int) -> bytes:
        path = self._share / "output"
        if not path.exists():
            return b""
        with path.open("rb") as output:
            output.seek(position)
            return output.read()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _command(self) -> list[str]:
        # A guest is several processes, which a namespace holds together: when its first process
        # ends, all do. It is killed when the thread that made it is gone.
        return [
            *("taskset", "--cpu-list", str(self._processor)),
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"),
            *(
                self._kernel,
                f"mem={MEMORY >> 20}M",
                "quiet",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
            ),
            *(f"init={INIT}", f"share={self._share}"),
            *("con=null", "con0=null,fd:1", f"uml_dir={self.files}/", "umid=guest"),
        ]


def run(
    command: Sequence[str],
    *,
    folder: Path,
    timeout: float,
    results: Path | None = None,
    echo: Callable[[bytes], object] = len,
) -> Finished:
    """Boot a guest, run a command there, and switch it off; arguments as ``Guest`` and ``wait``.

    Raises:
        MachineError: User Mode Linux is not installed, or the command did not come to its end.
    """
    with Guest(command, folder=folder, timeout=timeout, results=results) as guest:
        return guest.wait(echo)


def find_kernel() -> str:
    """The path of the kernel, which is a program.

    Raises:
        MachineError: it is not installed, or has no place for its modules.
    """
    found = shutil.which(NAME)
    if found is None:
        raise MachineError(f"there is no {NAME}: ./dev setup installs user-mode-linux")
    try:
        # The guest mounts its modules there; a container's root may have no such folder.
        LIB_MODULES.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"there is no {LIB_MODULES}: please make it ({error})") from error
    return found


def _processor() -> int:
    """The number of the processor that a guest runs on; guests take turns in choosing.

    It is one program that runs at a time, whichever of the guest's, and it goes on twice as fast
    where the one before was: a processor that is idle is slow to wake up, in a virtual machine
    most of all.
    """
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    return allowed[next(_numbers) % len(allowed)]


def _memory_folder() -> Path | None:
    """Where the file that is the guest's memory costs no disk, if there is such a place.

    Containers often have a small one, or one whose files must not be executed.
    """
    if not SHARED_MEMORY.is_dir():
        return None
    found = os.statvfs(SHARED_MEMORY)
    fits = found.f_bavail * found.f_frsize >= MEMORY and not found.f_flag & os.ST_NOEXEC
    return SHARED_MEMORY if fits else None


@cache
def inside() -> bool:
    """Whether this process runs in a guest."""
    return "User Mode Linux" in read(Path("/proc/cpuinfo"))


def _preparation(results: Path | None) -> Iterator[str]:
    yield "set -e"
    yield f"modprobe -a {' '.join(MODULES)}"
    if results is not None:
        name = shlex.quote(str(results.resolve()))
        yield f"mount -t hostfs -o {name} none {name}"
    yield "set +e"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command given on the command line in a guest; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m testbed.uml", description=main.__doc__)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds (default: 600)")
    parser.add_argument("--results", type=Path, help="a folder that the guest may write to")
    parser.add_argument("command", nargs="+", help="the command line, after --")
    options = parser.parse_args(arguments)

    def echo(piece: bytes) -> None:
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()

    try:
        finished = run(
            options.command,
            folder=Path.cwd(),
            timeout=options.timeout,
            results=options.results,
            echo=echo,
        )
    except MachineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return finished.status


if __name__ == "__main__":
    sys.exit(main())
