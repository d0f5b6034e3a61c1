"""User Mode Linux: a kernel with IPVS that runs as an ordinary process on any machine.

The guest uses the host's root file system, read-only over hostfs; ``/run`` is its own and takes
temporary files. It has one processor, needs no privilege, device or KVM, and boots in about two
seconds. System calls are as fast as on the host, but starting a program takes about ten times as
long. Its clock is the real one.

``python -m testbed.uml -- COMMAND...`` runs a command in a guest, as root in the current folder.
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
"""Loaded at boot, IPv6 first: IPVS checks for it only when it is loaded itself. The kernel would
load most of the others on demand, but would start a slow program for each."""
MEMORY = 2 << 30
"""The size of the guest's memory; the host allocates pages when they are used."""
SHARED_MEMORY = Path("/dev/shm")
_numbers = itertools.count()
_POLL = 0.1  # seconds between reads of the output


class Guest:
    """A guest that runs a command; as a context manager it boots and is killed.

    Args:
        command: the command line, run as root.
        folder: the working folder; not below ``/run``, which the guest does not share.
        timeout: seconds that boot, command and shutdown may take together.
        results: a folder that the guest may write to, under the same path.

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
        """The folder of the guest's files; it appears in the command lines of its processes."""
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
                # The kernel and the processes that it traces end together. Only the main
                # process handles Ctrl-C at the terminal.
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
        """The output of the command so far."""
        return read(self._share / "output")

    def wait(self, echo: Callable[[bytes], object] = len) -> Finished:
        """Wait until the command has ended.

        Args:
            echo: called with each piece of output as it is written.

        Raises:
            MachineError: the command did not end; the message ends with its last output.
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
        """Wait up to ``patience`` seconds; return whether the guest is still running.

        A guest that exceeds its time-out is killed.
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
        # A guest is several processes. In a PID namespace they all end with the first one, which
        # is killed when the thread that created it ends.
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
    """Boot a guest, run a command in it, and shut it down; arguments as ``Guest`` and ``wait``.

    Raises:
        MachineError: User Mode Linux is not installed, or the command did not end.
    """
    with Guest(command, folder=folder, timeout=timeout, results=results) as guest:
        return guest.wait(echo)


def find_kernel() -> str:
    """Return the path of the kernel, which is a program.

    Raises:
        MachineError: it is not installed, or the folder for its modules is missing.
    """
    found = shutil.which(NAME)
    if found is None:
        raise MachineError(f"there is no {NAME}: ./dev setup installs user-mode-linux")
    try:
        # The guest mounts its modules there; the root of a container may lack the folder.
        LIB_MODULES.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"there is no {LIB_MODULES}: please create it ({error})") from error
    return found


def _processor() -> int:
    """Return the processor for a guest; guests get processors in turn.

    Only one of a guest's processes runs at a time, and it runs twice as fast on the processor of
    the previous one: idle processors are slow to wake up, in a virtual machine above all.
    """
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    return allowed[next(_numbers) % len(allowed)]


def _memory_folder() -> Path | None:
    """Return a folder in memory for the file that backs the guest's memory, if there is one.

    In containers, ``/dev/shm`` is often small, or mounted ``noexec``.
    """
    if not SHARED_MEMORY.is_dir():
        return None
    found = os.statvfs(SHARED_MEMORY)
    fits = found.f_bavail * found.f_frsize >= MEMORY and not found.f_flag & os.ST_NOEXEC
    return SHARED_MEMORY if fits else None


@cache
def inside() -> bool:
    """Return whether this process runs in a guest."""
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
    parser.add_argument("--results", type=Path, help="a folder to which the guest may write")
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
