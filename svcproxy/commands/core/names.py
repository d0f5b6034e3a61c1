"""Replaces names of the cluster by keyed hashes, and removes what looks like a secret. Pure.

The same name gets the same hash throughout a bundle, so that its files can still be compared. The
key is made for one bundle and not kept, so that names cannot be guessed from the hashes.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from svcproxy.model.objects import ApiObject, EndpointSlice, Node, Service, ServiceCIDR

_NAME = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_NAMESPACED = re.compile(rf"(?<![\w./:-])({_LABEL})/({_NAME})(?::({_LABEL}))?(?![\w/])")
"""``namespace/name`` and ``namespace/name:port``, but no path, network or API version."""
_TOKEN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_CHAIN = re.compile(r"\b((?:KUBE|cali|svcproxy)-[A-Z0-9-]*?)([A-Z2-7]{16})\b")
"""A chain that is named by kube-proxy's hash of a Service port, which has no key."""

_SECRETS = (
    # The user and password of a URL
    (re.compile(r"(?<=://)[^/@\s\"']+@"), "REDACTED@"),
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), r"\1 REDACTED"),
    # A JSON web token, for example of a ServiceAccount
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), "REDACTED"),
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)", re.DOTALL), "REDACTED"),
    # What a credential plugin wrote to stderr, which svcproxy logs
    (re.compile(r"(exec: process returned -?\d+)[^\n]*?(: run it by hand|\n|$)"), r"\1 REDACTED\2"),
    (
        re.compile(
            r"(?i)((?:password|passwd|token|secret|api[_-]?key)(?:=\"?|: +|\" *: *\"))[^\s\",;]+"
        ),
        r"\1REDACTED",
    ),
)


def without_secrets(text: str) -> str:
    """Return a text without passwords in URLs, tokens and keys.

    svcproxy does not log secrets. This is a second line of defence, for example against an error
    text of a proxy or of a credential plugin.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def names_of(objects: Iterable[ApiObject]) -> frozenset[str]:
    """Return the names of objects, and those of namespaces, ports, nodes and zones in them."""
    found: set[str] = set()
    for obj in objects:
        match obj:
            case Service():
                found |= {*obj.name, *(port.name for port in obj.ports)}
            case EndpointSlice():
                found |= {*obj.name, *obj.service, *(port.name for port in obj.ports)}
                for each in obj.endpoints:
                    found |= {each.node_name, *each.zone_hints, *each.node_hints}
            case Node():
                found |= {obj.name, obj.zone}
            case ServiceCIDR():
                found.add(obj.name.name)
    return frozenset(found - {""})


class NameHasher:
    """Replaces names by hashes.

    Args:
        key: the key of the hashes, at most 64 bytes.
        known: names that are replaced wherever they are a whole word.
    """

    def __init__(self, key: bytes, known: Iterable[str] = ()) -> None:
        self._key = key
        self._known = frozenset(known)

    def name(self, name: str) -> str:
        """Return the hash of a name: 10 lower-case letters and digits."""
        digest = blake2b(name.encode(), key=self._key, digest_size=6).digest()
        return base64.b32encode(digest).decode().rstrip("=").lower()

    def rules(self, text: str) -> str:
        """Replace names in rules and comments of rules, where any word may be a keyword."""
        return _CHAIN.sub(self._chain, _NAMESPACED.sub(self._namespaced, text))

    def text(self, text: str) -> str:
        """Replace names in any other text."""
        return _TOKEN.sub(self._token, self.rules(text))

    def value(self, value: Any) -> Any:
        """Replace names in a value of JSON types; keys are field names, unless they have a slash."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {self.rules(key): self.value(each) for key, each in value.items()}
            case list() | tuple():
                return [self.value(each) for each in value]
            case _:
                return value

    def _token(self, match: re.Match[str]) -> str:
        return self.name(match[0]) if match[0] in self._known else match[0]

    def _namespaced(self, match: re.Match[str]) -> str:
        namespace, name, port = match.groups()
        if namespace.startswith("0x") or namespace.isdecimal():
            return match[0]  # a mark with its mask, or a fraction
        hashed = f"{self.name(namespace)}/{self.name(name)}"
        return f"{hashed}:{self.name(port)}" if port else hashed

    def _chain(self, match: re.Match[str]) -> str:
        digest = blake2b(match[2].encode(), key=self._key, digest_size=10).digest()
        return match[1] + base64.b32encode(digest).decode()
