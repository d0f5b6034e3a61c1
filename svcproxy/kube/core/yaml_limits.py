"""Checks limits on YAML in its event stream, before objects are built.

PyYAML's composer recurses into nested values, and merge keys (``<<``) copy the mapping that they refer
to: ten lines of aliases to aliases become a billion entries. Here each alias counts as many values
as its anchor, and nothing is copied.
"""

from typing import Any

import yaml

from svcproxy import limits

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlLimitError(Exception):
    """A YAML file exceeds a limit.

    Attributes:
        line: the line number, from 1.
        reason: the limit in words.
        limit: the label in ``refusals.KNOWN``.
    """

    def __init__(self, event: Any, reason: str, limit: str) -> None:
        super().__init__(reason)
        self.line = int(event.start_mark.line) + 1
        self.reason = reason
        self.limit = limit


def check_yaml(data: bytes) -> None:
    """Check all documents of a file.

    Raises:
        YamlLimitError: the file exceeds a limit.
        yaml.YAMLError: the file is not YAML.
    """
    counter = _Counter()
    loader = _Loader(data)
    try:
        while (event := loader.get_event()) is not None:
            # Fast path: nine of ten values are scalars without an anchor.
            if type(event) is yaml.ScalarEvent and event.anchor is None:
                counter.total += 1
            else:
                counter.count(event)
    finally:
        loader.dispose()


class _Counter:
    """Counts values; those behind an alias count at each use."""

    def __init__(self) -> None:
        self.total = 0
        self._open: list[tuple[str | None, int]] = []  # anchor, and the total at its start
        self._sizes: dict[str, int] = {}

    def count(self, event: Any) -> None:
        """Count one event."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self.total += 1
            self._sizes[event.anchor] = 1
        elif kind is yaml.AliasEvent:
            self._count_alias(event)
        elif kind in {yaml.MappingStartEvent, yaml.SequenceStartEvent}:
            self._count_start(event)
        elif kind in {yaml.MappingEndEvent, yaml.SequenceEndEvent}:
            anchor, before = self._open.pop()
            if anchor:
                self._sizes[anchor] = self.total - before
        elif kind is yaml.DocumentStartEvent:
            self._sizes.clear()
        self._check(event)

    def _count_start(self, event: Any) -> None:
        if len(self._open) >= limits.YAML_DEPTH:
            reason = f"is nested more than {limits.YAML_DEPTH} deep: flatten it"
            raise YamlLimitError(event, reason, "yaml_depth")
        self._open.append((event.anchor, self.total))
        self.total += 1

    def _count_alias(self, event: Any) -> None:
        if any(anchor == event.anchor for anchor, _ in self._open):
            reason = f"alias {event.anchor[:64]} refers to a value that contains it: write it out"
            raise YamlLimitError(event, reason, "yaml_depth")
        self.total += self._sizes.get(event.anchor, 1)

    def _check(self, event: Any) -> None:
        if self.total > limits.YAML_NODES:
            reason = f"holds more than {limits.YAML_NODES} values, with aliases: split the file"
            raise YamlLimitError(event, reason, "yaml_nodes")
