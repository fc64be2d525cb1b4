"""The page's parts: what is escaped, what is well-formed, what is never fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tats_core.report import page
from tats_core.report.page import Html, Mark, Track

EVIL = '<script>alert("x")</script>&\'"'


class Checked(HTMLParser):
    """Fails where a tag is closed that is not open, and keeps tags and attributes."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "circle", "polygon", "ellipse", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def everything(name: str) -> str:
    """Return a page with every part, each with `name` wherever a name can stand."""
    parts = (
        page.heading(name),
        page.paragraph(name),
        page.alert(name),
        page.table([name, "n"], [[name, 1], [name, 2]], caption=name),
        page.heat_table([name, "b"], [(name, [1, 0]), ("b", [0, 0])], corner=name, caption=name),
        page.strip([page.figure(page.picture(b"png", name, (4, 3)), name)], name),
        page.grid([page.figure(Html("<svg></svg>"), name)]),
        page.key_values([(name, name)]),
        page.code(name),
        page.collapsible(name, page.paragraph(name), opened=True),
        page.legend({"dot0": name}),
        page.tracks([Track(name, [Mark("bar0", 10, 20, name)], name)], [(0, name), (100, "b")], name),
    )
    tiles = page.tiles([(name, name, name)])
    return page.page(name, [page.section(name, *parts)], subtitle=name, head=[tiles], foot=name)


def test_every_part_is_well_formed_and_escapes_names() -> None:
    text = everything(EVIL)
    tags = Checked(text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert {name for _, attrs in tags for name in attrs if name.startswith("on")} == set()
    assert "alert(&quot;x&quot;)" in text
    assert 'alert("x")' not in text


def test_a_page_fetches_nothing_and_says_so() -> None:
    tags = Checked(everything("demo")).tags
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href", "srcset", "data") if key in attrs]
    assert [source for source in sources if not str(source).startswith(("#", "data:"))] == []
    assert {"url(", "@import"} & set(re.findall(r"url\(|@import", everything("demo"))) == set()
    policies = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_a_page_has_a_language_a_title_and_links_to_its_sections() -> None:
    text = page.page("demo", [page.section("What it shows"), page.section("Curves")])
    tags = Checked(text).tags
    assert ("html", {"lang": "en"}) in tags
    assert "<title>demo</title>" in text
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links == ["#what-it-shows", "#curves"]
    assert [attrs["id"] for tag, attrs in tags if tag == "section"] == ["what-it-shows", "curves"]


def test_html_stays_as_it_is_and_text_is_escaped() -> None:
    assert page.text(Html("<b>1</b>")) == "<b>1</b>"
    assert page.text("<b>1</b>") == "&lt;b&gt;1&lt;/b&gt;"
    assert page.text(0.5) == "0.5"


def test_a_cell_of_a_heat_table_is_as_dark_as_its_share_of_the_row() -> None:
    text = page.heat_table(["a", "b"], [("a", [3, 1]), ("b", [0, 0])], corner="true", caption="counts")
    assert re.findall(r'--share:(\d+)%">(\d*)<', text) == [("75", "3"), ("25", "1"), ("0", ""), ("0", "")]


@pytest.mark.parametrize(
    ("start", "end", "style"), [(10, 35, "left:10.00%;width:25.00%"), (50, None, "left:50.00%;")]
)
def test_a_mark_lies_at_its_share_of_the_track(start: float, end: float | None, style: str) -> None:
    assert f'style="{style}"' in page.tracks([Track("a", [Mark("bar0", start, end)], "")], [], "")
