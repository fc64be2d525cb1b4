"""Renders pages: Jinja templates with autoescape over plain data, one self-contained HTML file each.

A page has no script and makes no request, and its own policy forbids both; it is readable on a phone, light
and dark, on paper.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tats_core.report import theme
from tats_core.report.units import duration, moment


@dataclass(frozen=True)
class Mark:
    """Something on a track, at `start` percent of it; `end` makes it a bar or a range.

    `style` is one of `bar0` … `bar6`, `range0` …, `dot0` … (series' colours), `diamond`, `tick`.
    """

    style: str
    start: float
    end: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Track:
    """One line of a chart of tracks: a name, what lies on it, and the same in words."""

    label: str
    marks: Sequence[Mark]
    value: str


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"duration": duration, "moment": moment, "anchor": _anchor}
    environment.globals["style"] = theme.variables_css() + theme.drawing_css()
    return environment


def render(template: str, **data: Any) -> str:
    """Return the page that a template makes of plain data; strings are escaped, `Markup` is not."""
    return _environment().get_template(template).render(**data, nav=[]) + "\n"


def status(words: str, style: str | None = None) -> Markup:
    """Return a status as a badge."""
    return Markup('<span class="status {}">{}</span>').format(style or words, words)


def code(words: str) -> Markup:
    """Return a short text as it would be typed."""
    return Markup("<code>{}</code>").format(words)


def picture(data: bytes, alt: str, width: int, height: int, form: str = "png") -> Markup:
    """Return an image that the page carries itself."""
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    text = '<img alt="{}" width="{}" height="{}" loading="lazy" src="{}">'
    return Markup(text).format(alt, width, height, source)


def reduced(path: Path) -> tuple[bytes, int, int]:
    """Return a picture as a PNG of 256 colours, at most 1,400 pixels wide, with its width and height."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((1400, 1400))
    out = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue(), *image.size


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
