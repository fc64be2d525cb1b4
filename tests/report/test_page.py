"""The page's parts: what is escaped, what is well-formed, what is never fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import Markup

from tats_core.report import page
from tats_core.report.page import Mark, Track
from tats_core.report.table import Table

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


def run(name: str, **changes: Any) -> str:
    """Return the page of a run with every part, each with `name` wherever a name can stand."""
    image = page.picture(b"png", name, 4, 3)
    table = Table.of([name, "n"], [[name, page.code(name)], [name, page.status(name)]])
    data: dict[str, Any] = {
        **dict.fromkeys(("title", "lead", "error", "foot", "command", "overrides"), name),
        "tiles": [(name, name, name)],
        "environment": [(name, name)],
        "results": {
            "table": table,
            "policies": table,
            "marks": {"dot0": name},
            "tracks": [Track(name, [Mark("bar0", 10, 20, name)], name)],
            "footnotes": [],
            "meanings": [(name, name)],
            "classes": [
                {
                    "label": name,
                    "table": table,
                    "note": name,
                    "picture": None,
                    "corner": name,
                    "names": [name, "b"],
                    "counts": [(name, [3, 1]), ("b", [0, 0])],
                },
                {"label": name, "table": table, "note": "", "picture": image},
            ],
        },
        "pictures": [{"name": name, "grids": [(1, image)], "moving": (1, image)}],
        "curves": [
            {
                "name": name,
                "legend": {"line0": name},
                "opened": True,
                "rest": 3,
                "groups": [
                    {"label": name, "main": [Markup("<svg></svg>")], "more": [Markup("<svg></svg>")]},
                    {"label": "", "main": [], "more": []},
                ],
            }
        ],
        "graph": Markup("<svg></svg>"),
        "timeline": {
            "tracks": [Track(name, [Mark("bar0", 50)], name)],
            "ticks": [(0, name), (100, "b")],
            "reused": 1,
        },
        "errors": [name],
        "lineage": table,
        "configuration": [{"title": name, "given": {name: name}, "defaults": {name: name}}],
    }
    return page.render("run.html.j2", **{**data, **changes})


def test_every_part_is_well_formed_and_escapes_names() -> None:
    text = run(EVIL)
    tags = Checked(text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert {name for _, attrs in tags for name in attrs if name.startswith("on")} == set()
    assert "alert(&#34;x&#34;)" in text
    assert 'alert("x")' not in text


def test_a_page_fetches_nothing_and_says_so() -> None:
    text = run("demo")
    tags = Checked(text).tags
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href", "srcset", "data") if key in attrs]
    assert [source for source in sources if not str(source).startswith(("#", "data:"))] == []
    assert {"url(", "@import"} & set(re.findall(r"url\(|@import", text)) == set()
    policies = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_a_page_has_a_language_a_title_and_links_to_the_sections_that_it_has() -> None:
    text = run("demo", results=None, pictures=[])
    tags = Checked(text).tags
    assert ("html", {"lang": "en"}) in tags
    assert text.startswith("<!DOCTYPE html>")
    assert "<title>demo</title>" in text
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links == ["#curves", "#stages", "#lineage", "#configuration", "#environment"]
    assert [f"#{attrs['id']}" for tag, attrs in tags if tag == "section"] == links


def test_markup_stays_as_it_is_and_text_is_escaped() -> None:
    assert "<dd><b>1</b></dd>" in run("demo", tiles=[("a", Markup("<b>1</b>"), "")])
    assert "<dd>&lt;b&gt;1&lt;/b&gt;</dd>" in run("demo", tiles=[("a", "<b>1</b>", "")])


def test_a_cell_of_a_heat_table_is_as_dark_as_its_share_of_the_row() -> None:
    cells = re.findall(r'--share:(\d+)%">(\d*)<', run("demo"))
    assert cells == [("75", "3"), ("25", "1"), ("0", ""), ("0", "")]


@pytest.mark.parametrize(
    ("start", "end", "style"), [(10, 35, "left:10.00%;width:25.00%"), (50, None, "left:50.00%;")]
)
def test_a_mark_lies_at_its_share_of_the_track(start: float, end: float | None, style: str) -> None:
    tracks = [Track("a", [Mark("bar0", start, end)], "")]
    assert f'style="{style}"' in run("demo", timeline={"tracks": tracks, "ticks": [], "reused": 0})
