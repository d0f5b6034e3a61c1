"""Setting kernel parameters, read before they are written; what cannot be set is told.

kube-proxy ends when it may not write; in a container with a read-only ``/proc/sys`` or in LXC it
never starts (kubernetes#141943). Services work without any of this, so it is a warning here.
"""

import errno
import os
from pathlib import Path

import structlog

from svcproxy.config import Config
from svcproxy.node.wanted import CONNTRACK_MAX, PER_BUCKET, Parameter, parameters

log = structlog.get_logger()

_HASH_SIZE = Path("module/nf_conntrack/parameters/hashsize")
_OOM = Path("self/oom_score_adj")
_REMEDIES = {
    errno.ENOENT: "load the kernel module nf_conntrack before svcproxy starts",
    errno.EROFS: "set it on the host, or mount /proc/sys writable (a privileged container has it)",
    errno.EACCES: "set it on the host: this container or network namespace may not",
    errno.EPERM: "set it on the host, or run as root",
    errno.EOPNOTSUPP: "set it on the host: it can only be set in the initial network namespace",
}


class NodeParameters:
    """The node's kernel parameters.

    Args:
        proc: where procfs is mounted.
        sys: where sysfs is mounted.
        cpus: how many CPUs the node has; asked of the system if not given.
    """

    def __init__(
        self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), cpus: int | None = None
    ) -> None:
        self._proc = proc
        self._sys = sys
        self._cpus = cpus or os.cpu_count() or 1

    def set_up(self, config: Config) -> None:
        """Set what the flags ask for; never raises."""
        for parameter in parameters(config, self._cpus):
            done = self._set(parameter)
            if done and parameter.path == CONNTRACK_MAX:
                self._enlarge_table(parameter.value // PER_BUCKET)
        self._adjust_oom_score(config.oom_score_adj)

    def _set(self, parameter: Parameter) -> bool:
        path = self._proc / "sys" / parameter.path
        present: int | None = None
        try:
            present = int(path.read_text(encoding="ascii"))
            if present != parameter.value:
                path.write_text(str(parameter.value), encoding="ascii")
                log.info("sysctl.set", sysctl=parameter.name, value=parameter.value, before=present)
        except (OSError, ValueError) as error:
            log.warning(
                "sysctl.not_set",
                sysctl=parameter.name,
                wanted=parameter.value,
                present=present,
                effect=parameter.effect,
                **_reason(error),
            )
            return False
        return True

    def _enlarge_table(self, buckets: int) -> None:
        path = self._sys / _HASH_SIZE
        try:
            present = int(path.read_text(encoding="ascii"))
            if present < buckets:
                path.write_text(str(buckets), encoding="ascii")
                log.info("conntrack.table_enlarged", buckets=buckets, before=present)
        except (OSError, ValueError) as error:
            log.warning(
                "conntrack.table_not_enlarged",
                wanted=buckets,
                effect="looking up a connection takes longer when very many are tracked",
                **_reason(error),
            )

    def _adjust_oom_score(self, score: int) -> None:
        path = self._proc / _OOM
        try:
            if int(path.read_text(encoding="ascii")) != score:
                path.write_text(str(score), encoding="ascii")
        except (OSError, ValueError) as error:
            log.warning(
                "oom_score.not_set",
                wanted=score,
                error=str(error),
                effect="the kernel may end svcproxy early when memory runs out",
                remedy="grant CAP_SYS_RESOURCE, or pass --oom-score-adj=0",
            )


def _reason(error: OSError | ValueError) -> dict[str, str]:
    number = error.errno if isinstance(error, OSError) else None
    remedy = _REMEDIES.get(number or 0, "set it on the host")
    return {"error": os.strerror(number) if number else str(error), "remedy": remedy}
