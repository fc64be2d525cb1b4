"""One self-contained HTML page: no script, no request, readable on a phone, light and dark, on paper.

A page is a title and sections, a section a heading and parts; each part is made by one function here and
is `Html`. Plain strings are escaped wherever they come in, so a name can never become markup, and the
page's own policy forbids scripts and requests besides.

    page("demo", [section("Results", table(["benchmark", "top-1"], [["ssv2", "50.0"]]))])
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tats_core.report import theme


class Html(str):
    """Markup; any other string is text and is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """One part of a page under a heading of its own; `anchor` is its place in the address."""

    title: str
    anchor: str
    body: Html


@dataclass(frozen=True)
class Mark:
    """Something on a track, at `start` percent of it; `end` makes it a bar or a range.

    `look` is one of `bar0` … `bar3`, `range0` …, `dot0` … (series' colours), `diamond`, `tick`.
    """

    look: str
    start: float
    end: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Track:
    """One line of a chart of tracks: a name, what lies on it, and the same said in words."""

    label: str
    marks: Sequence[Mark]
    value: str


def text(value: Any) -> Html:
    """Return `value` as markup: escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[Any]) -> Html:
    """Return the parts one after the other, each as `text` makes it."""
    return Html("\n".join(text(part) for part in parts))


def page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", head: Sequence[Any] = (), foot: str = ""
) -> str:
    """Return the whole document.

    Args:
        subtitle: one sentence under the title.
        head: parts between the title and the list of sections, such as `tiles`.
        foot: one sentence at the end.
    """
    links = "".join(f'<li><a href="#{one.anchor}">{text(one.title)}</a></li>' for one in sections)
    bodies = "\n".join(
        f'<section id="{one.anchor}" aria-labelledby="{one.anchor}-title">\n'
        f'<h2 id="{one.anchor}-title">{text(one.title)}</h2>\n{one.body}\n</section>'
        for one in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{text(title)}</title>
<style>
{theme.variables_css()}{theme.drawing_css()}{_layout_css()}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
<p class="lead">{text(subtitle)}</p>
{join(head)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{bodies}
</main>
<footer><p>{text(foot)}</p></footer>
</body>
</html>
"""


def section(title: str, *parts: Any) -> Section:
    """Return a section; its anchor is made of its title."""
    return Section(title, re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section", join(parts))


def heading(words: Any) -> Html:
    """Return a heading inside a section."""
    return Html(f"<h3>{text(words)}</h3>")


def paragraph(words: Any) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{text(words)}</p>")


def alert(words: Any) -> Html:
    """Return a sentence that must not be overlooked."""
    return Html(f'<p class="alert" role="note">{text(words)}</p>')


def table(
    columns: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str = "", words: int = 1
) -> Html:
    """Return a table that scrolls in its own box where it is too wide.

    Args:
        words: how many columns, from the left, hold text; the others are numbers and lean right.
    """
    head = "".join(
        f'<th scope="col"{_lean(place, words)}>{text(one)}</th>' for place, one in enumerate(columns)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{text(cell)}</th>'
            if place == 0
            else f"<td{_lean(place, words)}>{text(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return _captioned(
        Html(f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"),
        caption,
    )


def _lean(place: int, words: int) -> str:
    return "" if place < words else ' class="n"'


def heat_table(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]], *, corner: str, caption: str
) -> Html:
    """Return counts by row and column, each cell as dark as its share of its row."""
    head = "".join(f'<th scope="col"><span>{text(one)}</span></th>' for one in columns)
    lines = []
    for name, counts in rows:
        whole = sum(counts) or 1
        cells = "".join(
            f'<td style="--share:{100 * count / whole:.0f}%">{count or ""}</td>' for count in counts
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return _captioned(
        Html(
            f'<table class="heat"><thead><tr>'
            f'<th scope="col">{text(corner)}</th>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
        ),
        caption,
    )


def _captioned(content: Html, caption: str) -> Html:
    # Above the box, not inside: there it would be as wide as the table, and cut off on a phone.
    note = Html(f'<p class="note" aria-hidden="true">{text(caption)}</p>') if caption else Html("")
    return join([note, scroll(content, caption or "table")])


def scroll(content: Html, label: str) -> Html:
    """Return `content` in a box that scrolls sideways by itself, with the keyboard too."""
    return Html(f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{content}</div>')


def figure(content: Html, caption: Any = "") -> Html:
    """Return a drawing or picture with its caption."""
    said = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{content}{said}</figure>")


def picture(
    data: bytes, alt: str, size: tuple[int, int], form: str = "png", *, dark: bytes | None = None
) -> Html:
    """Return an image that the page carries itself.

    Args:
        size: width and height in pixels.
        dark: the same for readers who like dark pages.
    """
    width, height = size
    shown = Html(
        f'<img alt="{text(alt)}" width="{width}" height="{height}" loading="lazy" '
        f'src="{_carried(data, form)}">'
    )
    if dark is None:
        return shown
    media = "screen and (prefers-color-scheme:dark)"
    return Html(f'<picture><source media="{media}" srcset="{_carried(dark, form)}">{shown}</picture>')


def _carried(data: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def size_of_png(data: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG in pixels."""
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def strip(figures: Iterable[Html], label: str) -> Html:
    """Return figures side by side, to be swiped through."""
    return Html(
        f'<div class="strip" role="region" tabindex="0" aria-label="{text(label)}">{join(figures)}</div>'
    )


def grid(figures: Iterable[Html]) -> Html:
    """Return small figures in as many columns as there is room for."""
    return Html(f'<div class="grid">{join(figures)}</div>')


def key_values(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Return names with their values."""
    lines = "\n".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in pairs)
    return Html(f'<dl class="pairs">\n{lines}\n</dl>')


def tiles(pairs: Iterable[tuple[str, Any, str]]) -> Html:
    """Return the few figures that matter most, large: `(name, value, remark)`."""
    lines = "\n".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd class='small'>{text(remark)}</dd></div>"
        for name, value, remark in pairs
    )
    return Html(f'<dl class="tiles">\n{lines}\n</dl>')


def code(words: str) -> Html:
    """Return text as it would be typed."""
    return Html(f'<pre tabindex="0"><code>{text(words)}</code></pre>')


def collapsible(summary: Any, *parts: Any, opened: bool = False) -> Html:
    """Return parts that open on a click."""
    state = " open" if opened else ""
    return Html(f"<details{state}><summary>{text(summary)}</summary>\n{join(parts)}\n</details>")


def legend(entries: Mapping[str, str]) -> Html:
    """Return what the looks of marks or lines mean: look (as in `Mark`, or `line0` …) → words."""
    items = "".join(
        f'<li><i class="key {look}" aria-hidden="true"></i>{text(words)}</li>'
        for look, words in entries.items()
    )
    return Html(f'<ul class="legend">{items}</ul>')


def tracks(rows: Iterable[Track], ticks: Iterable[tuple[float, str]], label: str) -> Html:
    """Return a chart of lines that share one scale; `ticks` are places in percent with their words."""
    marks = list(ticks)
    lines = []
    for row in rows:
        drawn = "".join(f'<i class="grid-line" style="left:{at:.2f}%"></i>' for at, _ in marks)
        drawn += "".join(_mark(one) for one in row.marks)
        lines.append(
            f'<li><span class="name">{text(row.label)}</span>'
            f'<span class="track" aria-hidden="true">{drawn}</span>'
            f'<span class="value">{text(row.value)}</span></li>'
        )
    scale = "".join(f'<b style="left:{at:.2f}%">{text(words)}</b>' for at, words in marks)
    scale = f'<span></span><span class="track">{scale}</span><span></span>'
    lines.append(f'<li class="scale" aria-hidden="true">{scale}</li>')
    body = "\n".join(lines)
    return Html(f'<ul class="tracks" aria-label="{text(label)}">\n{body}\n</ul>')


def _mark(mark: Mark) -> str:
    wide = "" if mark.end is None else f"width:{max(0.0, mark.end - mark.start):.2f}%"
    return (
        f'<i class="{text(mark.look)}" style="left:{mark.start:.2f}%;{wide}" title="{text(mark.title)}"></i>'
    )


def _layout_css() -> str:
    return importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
