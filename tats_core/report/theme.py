"""The colours of pages and drawings, light and dark, in one place.

They are Okabe and Ito's, which colour-blind readers tell apart; each comes with a dash, a shape or a word.
Drawings have classes that start with `t-`, styled by `drawing_css`.
"""

from __future__ import annotations

from string import Template
from typing import Final
from zlib import crc32

COLOURS: Final = {
    # name: light, dark
    "ink": ("#1b2126", "#e7eaed"),
    "soft": ("#59636c", "#a0abb4"),
    "line": ("#d8dde2", "#363e46"),
    "paper": ("#ffffff", "#14181c"),
    "card": ("#f6f7f9", "#1c2228"),
    "blue": ("#0072b2", "#56b4e9"),
    "orange": ("#b86a00", "#f0a93b"),
    "green": ("#007a5a", "#2ebd94"),
    "red": ("#b83c00", "#ff8a5c"),
    "violet": ("#9a4f7e", "#dd9fc4"),
    "gold": ("#7d6c00", "#e3d54e"),
    "bluish": ("#e3f0f8", "#12303f"),
    "orangish": ("#fbeedb", "#3d2c10"),
    "greenish": ("#ddf2ea", "#0f332a"),
    "reddish": ("#fbe7dd", "#402114"),
    "violetish": ("#f6e6ef", "#3a2431"),
    "goldish": ("#f6f2d3", "#343110"),
}

_KINDS: Final = {
    # kind of stage: colour of its outline, of its area
    "data": ("gold", "goldish"),
    "pretrain": ("blue", "bluish"),
    "finetune": ("orange", "orangish"),
    "probe": ("violet", "violetish"),
    "evaluate": ("green", "greenish"),
    "report": ("ink", "card"),
    "command": ("soft", "card"),
}
_OTHERS: Final = (("violet", "bluish"), ("blue", "greenish"), ("green", "goldish"), ("orange", "violetish"))
"""The colours of other kinds: by their names, the same in every drawing."""

_DRAWING: Final = """
.t-paper{fill:$paper}
.t-text{fill:$ink}
.t-soft{fill:$soft}
.t-bad{fill:$red}
.t-edge{stroke:$soft;fill:none}
.t-head{fill:$soft}
"""


def drawing_css() -> str:
    """Return the style of all drawings; plain enough for programs that know no CSS variables."""
    others = {f"other{index}": colours for index, colours in enumerate(_OTHERS)}
    kinds = "".join(
        f".t-{kind}{{fill:${area};stroke:${outline}}}\n"
        for kind, (outline, area) in (_KINDS | others).items()
    )
    rules = Template(_DRAWING + kinds + ".t-broken{stroke:$red}\n")
    light, dark = (rules.substitute({name: pair[side] for name, pair in COLOURS.items()}) for side in (0, 1))
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}\n"


def variables_css() -> str:
    """Return the colours as CSS variables `--ink` and so on, for pages."""
    light, dark = (
        ":root{" + "".join(f"--{name}:{pair[side]};" for name, pair in COLOURS.items()) + "}"
        for side in (0, 1)
    )
    return f"{light}\n@media screen and (prefers-color-scheme:dark){{{dark}}}\n"


def kind_class(kind: str) -> str:
    """Return the class of a stage of this kind."""
    return f"t-{kind}" if kind in _KINDS else f"t-other{crc32(kind.encode()) % len(_OTHERS)}"
