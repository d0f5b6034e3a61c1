"""Running iptables-save and iptables-restore."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum

from svcproxy.backends.base import BackendError, BackendUnavailable, TransactionError
from svcproxy.descriptors import LIMIT
from svcproxy.model.names import IPFamily

_PROBE_CHAIN = "KUBE-SVC-PROBE"
_LOCK_WAIT_SECONDS = 5
_TIMEOUT_SECONDS = 300
_FAILED_LINE = re.compile(r"line:? (\d+)(?: failed)?")


Announced = Callable[[Callable[[], int]], AbstractContextManager[None]]
"""Makes the context in which a process of ours runs: it calls the function that starts the process
and gives its number, and leaves when the process has ended."""


@contextmanager
def unannounced(start: Callable[[], int]) -> Iterator[None]:
    """Start a process that nobody has to know of."""
    start()
    yield


class Variant(StrEnum):
    """The two implementations of iptables; a node's rules live in one of them."""

    NFT = "nft"
    LEGACY = "legacy"


class Iptables:
    """The iptables programs of one variant and family.

    The programs are looked up once. A system without variant-specific names (``iptables-nft``)
    has only one variant, under the plain name.
    """

    def __init__(self, variant: Variant, family: IPFamily) -> None:
        self.variant = variant
        self.family = family
        self._list = _find(variant, family, "")
        self._save = _find(variant, family, "-save")
        self._restore = _find(variant, family, "-restore")
        self.announced: Announced = unannounced

    def save(self, *tables: str) -> str:
        """Read tables, all when none is named.

        Raises:
            BackendError: iptables-save failed; the message is its own.
        """
        commands = [[self._save, "-t", table] for table in tables] or [[self._save]]
        return "".join(_run(command, None).stdout for command in commands)

    def chain(self, table: str, chain: str) -> str:
        """List the rules of one chain, which costs little; nothing if it cannot be listed.

        What iptables says of a chain that does not exist differs between versions and variants,
        so that is not told from other failures.
        """
        command = [self._list, "-w", str(_LOCK_WAIT_SECONDS), "-t", table, "-S", chain]
        done = _run(command, None, check=False)
        return "" if done.returncode else done.stdout

    def restore(self, text: str) -> None:
        """Apply a restore input without flushing what it does not name.

        Each table in it is one transaction. The nft variant ignores the lock's waiting time:
        its transactions need no lock.

        Raises:
            TransactionError: nothing of the failing table was applied; the message holds the line
                that iptables complains about.
        """
        command = [self._restore, "--noflush", "-w", str(_LOCK_WAIT_SECONDS)]
        done = _run(command, text, check=False, announced=self.announced)
        if done.returncode:
            raise TransactionError(_explain(self._restore, done.stderr, text))

    def accepts(self, table: str, *matches: str) -> bool:
        """Try a rule with each match in a chain that nothing refers to, and remove it again.

        Raises:
            BackendError: not even the chain can be removed: the table cannot be written.
        """
        chain = f"*{table}\n:{_PROBE_CHAIN} - [0:0]\n"
        rules = "".join(f"-A {_PROBE_CHAIN} {match}\n" for match in matches)
        # Naming a chain flushes it.
        removal = f"{chain}-X {_PROBE_CHAIN}\nCOMMIT\n"
        try:
            self.restore(f"{chain}{rules}COMMIT\n{removal}")
        except BackendError:
            self.restore(removal)
            return False
        return True


def _find(variant: Variant, family: IPFamily, action: str) -> str:
    base = "ip6tables" if family is IPFamily.IPV6 else "iptables"
    path = shutil.which(f"{base}-{variant}{action}")
    if path:
        return path
    plain = shutil.which(f"{base}{action}")
    if plain and _plain_variant(plain) is variant:
        return plain
    raise BackendUnavailable(
        f"{base}-{variant}{action} not found in PATH: install the iptables package"
        " (Debian: apt-get install iptables)"
    )


def _plain_variant(program: str) -> Variant:
    done = _run([program, "--version"], None, check=False)
    return Variant.NFT if "nf_tables" in done.stdout else Variant.LEGACY


def _run(
    command: list[str],
    text: str | None,
    *,
    check: bool = True,
    announced: Announced = unannounced,
) -> subprocess.CompletedProcess[str]:
    process: subprocess.Popen[str] | None = None

    def start() -> int:
        nonlocal process
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        LIMIT.restore_in(process.pid)
        return process.pid

    try:
        with announced(start):
            assert process is not None
            done = _finish(process, command, text)
    except OSError as error:
        raise BackendError(f"{command[0]}: {error.strerror}") from error
    if check and done.returncode:
        raise BackendError(_explain(command[0], done.stderr, ""))
    return done


def _finish(
    process: subprocess.Popen[str], command: list[str], text: str | None
) -> subprocess.CompletedProcess[str]:
    """Feed a process and wait for its end, which comes in any case."""
    with process:
        try:
            output, errors = process.communicate(text, _TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise BackendError(f"{command[0]} did not end within {_TIMEOUT_SECONDS} s") from error
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _explain(program: str, stderr: str, text: str) -> str:
    """One line: what iptables said, and the input line it said it of."""
    said = " ".join(stderr.split())[:500] or "failed without a message"
    found = _FAILED_LINE.search(stderr)
    lines = text.splitlines()
    if found and 0 < int(found[1]) <= len(lines):
        said += f" [input line {found[1]}: {lines[int(found[1]) - 1][:300]}]"
    return f"{program}: {said}"
