"""Pages that say why there is no other page. Pure."""

from svcproxy.ui.core.frame import Place, anchor, notice, page, plain
from svcproxy.ui.core.html import element, link


def error_page(title: str, text: str, remedy: str = "") -> bytes:
    """Return a page with an error.

    Args:
        title: what failed.
        text: why.
        remedy: what to do; empty if there is nothing.
    """
    return page(
        title,
        Place(),
        notice(title, plain(text), plain(remedy) if remedy else None),
        element("p", anchor(link("./"), "Overview")),
    )
