"""Makes HTML that is escaped by construction.

``element`` escapes every text. Only ``element`` and ``document`` create ``Html``, so that no other
module can put a text into a page unescaped. Addresses of links are made by ``link``, which quotes
the query; they are relative, so that pages also work behind a proxy that adds a prefix.
"""

import re
from collections.abc import Iterable
from html import escape
from typing import Final
from urllib.parse import urlencode

_NAME = re.compile(r"[a-z][a-zA-Z0-9-]*")
_PATH = re.compile(r"\./|([a-z]+(\.[a-z]+)?)?")
_VOID = frozenset({"br", "input", "link", "meta"})
# Attributes with addresses accept only Link; those with code or style are never needed.
_ADDRESSES = frozenset({"action", "href"})
_FORBIDDEN = frozenset({"script", "style", "iframe", "object", "embed", "base"})
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Html:
    """A piece of HTML; ``text`` is safe to send."""

    __slots__ = ("text",)

    def __init__(self, text: str, key: object) -> None:
        assert key is _KEY, "only element() and document() make Html"
        self.text = text


_KEY: Final = object()


class Link:
    """A relative address within the pages."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


Content = Html | str | int | None | Iterable["Content"]
"""What may be in an element: HTML, texts (escaped), numbers, and sequences of these."""

Attribute = str | int | bool | Link | None


def link(path: str, fragment: str = "", **query: str | int | None) -> Link:
    """Return a relative address.

    Args:
        path: the file in the folder of the pages; ``./`` for the overview.
        fragment: the ID of an element on the page; empty for none.
        query: the parameters; those that are empty or ``None`` are omitted.

    Raises:
        ValueError: the path is not relative.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"not a relative path: {path!r}")
    given = {name: value for name, value in query.items() if value not in {None, ""}}
    text = path + (f"?{urlencode(given)}" if given else "")
    return Link(f"{text}#{fragment}" if fragment else text)


def visible(text: str) -> str:
    r"""Return a text with control and bidirectional characters as ``\\x1b`` or ``\\u202e``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def element(tag: str, *content: Content, **attributes: Attribute) -> Html:
    """Return an element.

    Args:
        tag: the name of the element.
        content: what it contains; texts are escaped.
        attributes: the attributes. A trailing underscore is removed (``class_``), others become
            dashes (``aria_label``). ``True`` is an attribute without a value, ``None`` and
            ``False`` omit it.

    Raises:
        ValueError: an element or attribute that pages must not have, or an address that is not a
            ``Link``.
    """
    if not _NAME.fullmatch(tag) or tag in _FORBIDDEN:
        raise ValueError(f"not allowed: <{tag}>")
    head = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{head}>", _KEY)
    return Html(f"<{tag}{head}>{_text(content)}</{tag}>", _KEY)


def fragment(*content: Content) -> Html:
    """Return content without an element around it."""
    return Html(_text(content), _KEY)


def document(html: Html) -> bytes:
    """Return a whole page, from its ``html`` element."""
    return f"<!doctype html>\n{html.text}\n".encode()


def _attribute(name: str, value: Attribute) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if not _NAME.fullmatch(name) or name.startswith("on") or name in {"style", "src", "srcdoc"}:
        raise ValueError(f"not allowed: attribute {name!r}")
    if (name in _ADDRESSES) is not isinstance(value, Link):
        raise ValueError(f"attribute {name!r} and links belong together")
    if value is True:
        return f" {name}"
    text = value.text if isinstance(value, Link) else visible(str(value))
    return f' {name}="{escape(text)}"'


def _text(content: Iterable[Content]) -> str:
    return "".join(map(_piece, content))


def _piece(content: Content) -> str:
    match content:
        case None:
            return ""
        case Html():
            return content.text
        case str() | int():
            return escape(visible(str(content)), quote=False)
        case _:
            return _text(content)
