"""What all pages share: the head with the navigation, tables, and the parts of sections. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from svcproxy.ui.core.html import Content, Html, Link, document, element, fragment, link

STYLE = "style.css"
"""The file name of the style sheet, in the folder of the pages."""


class Place(NamedTuple):
    """Where a page is: the node and its mode, as the head of each page names them."""

    node: str = ""
    mode: str = ""
    current: str = ""


def page(title: str, place: Place, *content: Content) -> bytes:
    """Return a whole page.

    Args:
        title: the title of the page, without the names of program and node.
        place: the node, and which entry of the navigation is current.
        content: the sections of the page.
    """
    where = f"{title} · {place.node} · svcproxy" if place.node else f"{title} · svcproxy"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", where),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="stylesheet", href=link(STYLE)),
    )
    body = element(
        "body",
        element("a", "Skip to the content", class_="skip", href=link("", "content")),
        _header(place),
        element("main", *content, id="content"),
    )
    return document(element("html", head, body, lang="en"))


def _header(place: Place) -> Html:
    entries = (("./", "Overview"), ("trace", "Trace a packet"))
    navigation = element(
        "nav",
        (
            element(
                "a",
                text,
                href=link(path),
                aria_current="page" if place.current == path else None,
            )
            for path, text in entries
        ),
        aria_label="Pages",
    )
    node = element(
        "p",
        element("span", place.node, class_="node"),
        element("span", f"{place.mode} mode" if place.mode else None, class_="mode"),
        class_="place",
    )
    brand = element("a", "svcproxy", class_="brand", href=link("./"))
    inner = element("div", brand, navigation, node if place.node else None, class_="inner")
    return element("header", inner)


class Column(NamedTuple):
    """A column of a table; numbers are right-aligned."""

    name: str
    number: bool = False
    class_: str = ""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Content]],
    *,
    class_: str = "",
) -> Html:
    """Return a table whose rows become cards on narrow screens, unless it has short cells.

    Args:
        caption: what the table contains, for screen readers; it is not visible.
        columns: the columns; the cells of the first one are the heads of their rows.
        rows: the cells.
        class_: the class of the table; ``latency`` has short cells.
    """
    head = element(
        "tr",
        (element("th", c.name, scope="col", class_=_class(c)) for c in columns),
    )
    body = (
        element("tr", (_cell(i, column, cell) for i, (column, cell) in _numbered(columns, row)))
        for row in rows
    )
    return element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", head),
        element("tbody", body),
        class_=class_ if class_ == "latency" else f"cards {class_}".strip(),
    )


def _numbered(
    columns: Sequence[Column], row: Sequence[Content]
) -> Iterable[tuple[int, tuple[Column, Content]]]:
    return enumerate(zip(columns, row, strict=True))


def _cell(place: int, column: Column, cell: Content) -> Html:
    if place == 0:
        return element("th", cell, scope="row", class_=_class(column))
    return element("td", cell, class_=_class(column), data_label=column.name)


def _class(column: Column) -> str | None:
    names = (["number"] if column.number else []) + ([column.class_] if column.class_ else [])
    return " ".join(names) or None


def badge(text: str, meaning: str) -> Html:
    """Return a short text with a colour and a mark; the text alone carries the meaning.

    Args:
        text: the text.
        meaning: ``good``, ``bad``, ``warning`` or ``plain``.
    """
    return element("span", text, class_=f"badge {meaning}")


def facts(entries: Iterable[tuple[str, Content]], class_: str = "facts") -> Html:
    """Return a list of names with values; entries with an empty value are left out."""
    found = (
        element("div", element("dt", name), element("dd", value))
        for name, value in entries
        if value is not None and value != ""
    )
    return element("dl", found, class_=class_)


def section(title: str, *content: Content, id_: str = "", note: Content = None) -> Html:
    """Return a section with a heading; ``note`` is a short remark beside it."""
    head = element(
        "div",
        element("h2", title),
        element("p", note, class_="note") if note else None,
        class_="head",
    )
    return element("section", head, *content, id=id_ or None)


def notice(title: str, *content: Content, meaning: str = "bad", heading: str = "h1") -> Html:
    """Return a message that stands out; ``heading`` is ``h2`` on pages with another title."""
    return element(
        "div", element(heading, title), *content, class_=f"notice {meaning}", role="alert"
    )


def plain(text: str) -> Html:
    """Return a paragraph."""
    return element("p", text)


def anchor(target: Link, *content: Content) -> Html:
    """Return a link."""
    return element("a", *content, href=target)


def lines(texts: Iterable[Content]) -> Html:
    """Return texts below each other."""
    return fragment(element("div", text) for text in texts)
