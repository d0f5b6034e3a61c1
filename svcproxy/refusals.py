"""Counts inputs that were refused because they exceed a limit.

There is one counter for the whole process, because layers below the metrics refuse inputs. It is
exported as ``svcproxy_refused_inputs_total{input,limit}``. Both labels come from the code, never
from the input, so the number of series is fixed.
"""

from collections.abc import Mapping
from threading import Lock

KNOWN: tuple[tuple[str, str], ...] = (
    ("admin", "request"),
    ("admin", "seconds"),
    ("admin", "user"),
    ("annotation", "scheduler"),
    ("api_response", "body_bytes"),
    ("api_response", "body_seconds"),
    ("api_response", "head_seconds"),
    ("http", "body_bytes"),
    ("http", "connections"),
    ("http", "connections_per_peer"),
    ("http", "descriptors"),
    ("http", "header_bytes"),
    ("http", "headers"),
    ("http", "malformed"),
    ("http", "request_line_bytes"),
    ("http", "request_seconds"),
    ("http", "unsupported"),
    ("ip_vs", "bytes"),
    ("log", "full"),
    ("log", "length"),
    ("log", "rate"),
    ("manifests", "file_bytes"),
    ("manifests", "files"),
    ("manifests", "folder_bytes"),
    ("manifests", "yaml_depth"),
    ("manifests", "yaml_nodes"),
    ("netlink", "enobufs"),
    ("netlink", "malformed"),
    ("object", "list_entries"),
    ("object", "service_frontends"),
    ("object", "service_targets"),
    ("object", "slice_targets"),
    ("watch", "line_bytes"),
)
"""All pairs of labels, input and limit; docs/limits.md explains each.

Each is exported from the start with 0, so that the first refusal is visible as an increase.
"""


class Refusals:
    """Counts refusals by the pairs in ``KNOWN``; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts = dict.fromkeys(KNOWN, 0)

    def count(self, source: str, limit: str, number: int = 1) -> None:
        """Count ``number`` inputs that a limit refused.

        Args:
            source: the kind of input, such as ``watch``.
            limit: the limit that was exceeded.
            number: how many inputs were refused.

        Raises:
            KeyError: the pair is not in ``KNOWN``.
        """
        with self._lock:
            self._counts[source, limit] += number

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Return the totals so far, by source and limit."""
        with self._lock:
            return dict(self._counts)


REFUSALS = Refusals()
"""The counter of this process."""
