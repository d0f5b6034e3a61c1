"""HTML that is escaped by construction: parsed again, it contains what was put in."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.ui.core import html
from svcproxy.ui.core.html import Link, document, element, link, visible

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt; &amp;",
    "</td></table><h1>",
    "<!--",
    "]]>",
    "javascript:alert(1)",
)


class Parsed(HTMLParser):
    """The elements of a document with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text: str) -> None:
    made = element("p", text, [text, element("b", text)], title=text)
    parsed = Parsed(made.text)
    assert parsed.elements == [("p", {"title": text}), ("b", {})]
    assert parsed.text == text * 3


@given(st.text(), st.text())
def test_any_text_comes_back_with_control_characters_visible(content: str, attribute: str) -> None:
    parsed = Parsed(element("p", content, title=attribute).text)
    assert parsed.elements == [("p", {"title": visible(attribute)})]
    assert parsed.text == visible(content)


def test_control_and_bidirectional_characters_are_visible() -> None:
    assert visible("a\x1b[31m\u202eb\x00\ud800") == "a\\x1b[31m\\u202eb\\x00\\ud800"
    document(element("html", "\ud800"))


@pytest.mark.parametrize("tag", ["script", "style", "iframe", "object", "embed", "base", "b><i"])
def test_elements_that_pages_must_not_have(tag: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        element(tag)


@pytest.mark.parametrize("name", ["onclick", "style", "src", "srcdoc", 'a"b', "a b", "A"])
def test_attributes_that_pages_must_not_have(name: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        element("p", **{name: "x"})


@pytest.mark.parametrize("name", ["href", "action"])
def test_an_address_must_be_a_link(name: str) -> None:
    with pytest.raises(ValueError, match="belong together"):
        element("a", **{name: "javascript:alert(1)"})
    with pytest.raises(ValueError, match="belong together"):
        element("a", title=link("./"))


@pytest.mark.parametrize(
    "path", ["//example.com", "https://example.com", "javascript:x", "/", ".."]
)
def test_a_link_is_relative_and_stays_in_the_folder(path: str) -> None:
    with pytest.raises(ValueError, match="not a relative path"):
        link(path)


def test_the_query_of_a_link_is_quoted() -> None:
    assert link("service", name="a&b=c/#d ").text == "service?name=a%26b%3Dc%2F%23d+"
    assert link("./", "services", find="", page=None, only="x").text == "./?only=x#services"


def test_html_is_made_by_elements_only() -> None:
    with pytest.raises(AssertionError):
        html.Html("<script>", object())
    assert isinstance(link("./"), Link)


def test_omitted_and_bare_attributes() -> None:
    made = element("input", checked=True, disabled=False, value=None, class_="a", aria_label="b")
    assert made.text == '<input checked class="a" aria-label="b">'
