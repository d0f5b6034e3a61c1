"""The JSON documents that commands print with ``-o json``.

A document has the fields ``kind`` and ``apiVersion``, as Kubernetes objects do. Within a version,
fields are only added. ``docs/schema`` has a JSON schema of each kind.
"""

import msgspec

from svcproxy.model.names import IPFamily, Protocol

API_VERSION = "svcproxy.io/v1"


class Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="kind"):
    """A JSON document; its ``kind`` is the name of the class.

    Attributes:
        api_version: the version of the shape.
    """

    api_version: str = API_VERSION


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a document. A field with a default is left out if it has that value."""


class ConnectionCounts(Part, frozen=True, kw_only=True):
    """The connections of a frontend.

    Attributes:
        new_per_second: new connections per second; absent if unknown.
        open: open connections; absent if unknown.
    """

    new_per_second: float | None = None
    open: int | None = None


FrontendKey = tuple[IPFamily, str, int, Protocol]
"""The identity of a frontend; its address is empty for a node port."""


class KernelDifference(Part, frozen=True, kw_only=True):
    """A kernel object that differs from the desired state.

    Attributes:
        difference: ``missing``, ``unexpected`` or ``different``.
        object: what it is, in words with its name.
        desired: what it should be, in the syntax of the kernel's tool; absent if it should not be.
        actual: what it is; absent if it is missing.
    """

    difference: str
    object: str
    desired: str = ""
    actual: str = ""
