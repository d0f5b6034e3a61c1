"""The API server's rules for names, applied to every object.

Objects of a real API server always conform. Manifests, and answers of a hostile or broken server,
may not. A valid name contains no quote, white space or control character, so it is safe in a rule, a
comment or a log line.

Sources: ``k8s.io/apimachinery/pkg/util/validation``, ``pkg/apis/core/validation`` and
``pkg/apis/discovery/validation`` of Kubernetes 1.36.
"""

import re

from svcproxy import limits
from svcproxy.kube.core.wire import ParseError

_PART = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_BETWEEN = f"{{0,{limits.LABEL_CHARACTERS - 2}}}"
_LABEL = rf"[a-z0-9](?:[-a-z0-9]{_BETWEEN}[a-z0-9])?"
# The API limits the length of a subdomain, not of its labels.
_SUBDOMAIN = rf"(?![^/]{{{limits.SUBDOMAIN_CHARACTERS + 1}}}){_PART}(?:\.{_PART})*"
_VALUE = rf"[A-Za-z0-9](?:[-A-Za-z0-9_.]{_BETWEEN}[A-Za-z0-9])?"


class LimitExceededError(ParseError):
    """An object exceeds a limit of ``svcproxy.limits``.

    Attributes:
        limit: the label of the metric that counts it.
    """

    def __init__(self, field: str, reason: str, limit: str) -> None:
        super().__init__(field, reason)
        self.limit = limit


def quoted(value: object) -> str:
    """Quote a value for a message: escaped, and cut at ``limits.SHOWN_CHARACTERS``."""
    text = value if isinstance(value, str) else _number(value)
    if len(text) <= limits.SHOWN_CHARACTERS:
        return repr(text) if isinstance(value, str) else text
    return f"{text[: limits.SHOWN_CHARACTERS]!r}… ({len(text)} characters)"


def _number(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of thousands of digits"


class NameRule(dict[str, str]):
    """Checks names by one rule: ``rule[name]`` returns the name, or raises ``ValueError``.

    This is a dictionary because the first list of a large cluster checks 100,000 names. A name that
    was checked before costs one lookup in C, and shares its text, like ``sys.intern``.

    Args:
        rule: a regular expression for valid names.
        what: the rule in words, for messages.
    """

    def __init__(self, rule: str, what: str) -> None:
        super().__init__()
        self.allowed = re.compile(rule).fullmatch
        """Matches a valid name without caching it; for names that are unique."""
        self._what = what

    def __missing__(self, name: str) -> str:
        if not self.allowed(name):
            raise ValueError(self.reason(name))
        if len(self) >= limits.SHARED_NAMES:
            self.clear()
        self[name] = name
        return name

    def reason(self, name: str) -> str:
        """Return the message for an invalid name."""
        return f"{quoted(name)} is not {self._what}"

    def at(self, field: str, name: str) -> str:
        """Return the name if it is valid.

        Args:
            field: the path of the field, for the message.
            name: the name.

        Raises:
            ParseError: the name is invalid.
        """
        try:
            return self[name]
        except ValueError as error:
            raise ParseError(field, str(error)) from None


LABELS = NameRule(
    _LABEL,
    f"a DNS label: up to {limits.LABEL_CHARACTERS} of a-z, 0-9 and -, no - at either end",
)
"""Names of Services, namespaces and ports. Service names may begin with a digit, as the feature gate
``RelaxedServiceNameValidation`` allows."""

SUBDOMAINS = NameRule(
    _SUBDOMAIN,
    f"a DNS subdomain: up to {limits.SUBDOMAIN_CHARACTERS} characters, DNS labels with dots between",
)
"""Names of EndpointSlices, Nodes and ServiceCIDRs."""

LABEL_VALUES = NameRule(
    rf"(?:{_VALUE})?",
    f"a label value: up to {limits.LABEL_CHARACTERS} of A-Z, a-z, 0-9, -, _ and .",
)
"""The Service label of a slice, zones and zone hints. An empty text is valid."""

TAINT_KEYS = NameRule(
    rf"(?:{_SUBDOMAIN}/)?{_VALUE}",
    "a qualified name such as example.com/key",
)
"""Taint keys."""
