"""Preparing the node: conntrack's kernel parameters and hash table, and svcproxy's OOM score.

Services work without any of this, so what cannot be set is a warning.
"""

import os
from pathlib import Path

import structlog

from svcproxy import sysctl
from svcproxy.config import Config
from svcproxy.node.core.parameters import CONNTRACK_MAX, ENTRIES_PER_BUCKET, conntrack_parameters

log = structlog.get_logger()

_HASH_SIZE = Path("module/nf_conntrack/parameters/hashsize")
_OOM_SCORE = Path("self/oom_score_adj")


class NodeParameters:
    """The node's kernel parameters.

    Args:
        proc: the mount point of procfs.
        sys: the mount point of sysfs.
        cpus: the number of CPUs of the node; by default, the system is asked.
    """

    def __init__(
        self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), cpus: int | None = None
    ) -> None:
        self._proc = proc
        self._sys = sys
        self._cpus = cpus or os.cpu_count() or 1

    def set_up(self, config: Config) -> None:
        """Set what the flags ask for. Failures are logged, never raised."""
        for parameter in conntrack_parameters(config, self._cpus):
            done = sysctl.ensure(parameter, self._proc / "sys")
            if done and parameter.path == CONNTRACK_MAX:
                self._enlarge_hash_table(parameter.value // ENTRIES_PER_BUCKET)
        self._adjust_oom_score(config.oom_score_adj)

    def _enlarge_hash_table(self, buckets: int) -> None:
        path = self._sys / _HASH_SIZE
        try:
            found = int(path.read_text(encoding="ascii"))
            if found < buckets:
                path.write_text(str(buckets), encoding="ascii")
                log.info("conntrack.table_enlarged", buckets=buckets, before=found)
        except (OSError, ValueError) as error:
            log.warning(
                "conntrack.table_not_enlarged",
                wanted=buckets,
                effect="connection look-ups are slow while very many connections are tracked",
                error=sysctl.reason(error),
                remedy=sysctl.remedy(error, str(_HASH_SIZE)),
            )

    def _adjust_oom_score(self, score: int) -> None:
        path = self._proc / _OOM_SCORE
        try:
            if int(path.read_text(encoding="ascii")) != score:
                path.write_text(str(score), encoding="ascii")
        except (OSError, ValueError) as error:
            log.warning(
                "oom_score.not_set",
                wanted=score,
                error=str(error),
                effect="the kernel may kill svcproxy early when memory runs out",
                remedy="grant CAP_SYS_RESOURCE, or pass --oom-score-adj=0",
            )
