"""The graph of a pipeline's stages as a drawing (SVG) and as Mermaid text.

Layers from top to bottom: each box stands below all that it needs. Edges that follow from others are left
out. Inside a layer, boxes are ordered by the positions of their neighbours; then each takes the position
nearest to the mean of its neighbours that leaves the order and the gaps as they are. An edge over several
layers has an invisible point in each layer between, which keeps room for it, so no line crosses a box.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Final, NamedTuple

from tats_core.report import theme
from tats_core.report.units import cut, duration

_FEW = 3  # instances of a stage that are drawn one by one, unless the drawing would then have more than
_BOXES = 10

_BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 58, 26, 44, 14
_LETTER, _PADDING, _NARROWEST = 7.7, 46, 136
_LONGEST = 34  # letters of a name; the rest is cut
_SWEEPS = 8
_STACK = 8  # offset of the last box of a stack

_FIRST: Final = ("failed", "stopped", "running", "run", "finished", "waiting", "skipped", "skip")
"""Of several states in one stack, the first of these decides how it is drawn."""
_REUSED: Final = frozenset({"reuse", "cached"})
_IDLE: Final = frozenset({"skip", "skipped", "waiting"})
_BAD: Final = frozenset({"failed", "stopped"})
_WORDS: Final = {"cached": "reused", "reuse": "reused", "skip": "not asked for", "run": "to run"}


@dataclass(frozen=True)
class Node:
    """One box. `needs` are names of other boxes; `count` instances are stacked in it.

    `state` is an action of a plan or a status of a run; `detail` is the line under the name.
    """

    name: str
    kind: str
    needs: tuple[str, ...] = ()
    state: str = ""
    detail: str = ""
    count: int = 1

    @property
    def title(self) -> str:
        """The name as it is drawn."""
        times = f" × {self.count}" if self.count > 1 else ""
        return cut(self.name, _LONGEST - len(times)) + times

    @property
    def subtitle(self) -> str:
        """The line under the name, not cut."""
        return " · ".join(part for part in (self.kind if self.kind != self.name else "", self.detail) if part)

    @property
    def width(self) -> float:
        """How wide the box is drawn."""
        letters = max(len(self.title), 0.88 * min(len(self.subtitle), _LONGEST + 8))
        return max(_NARROWEST, letters * _LETTER + _PADDING)


@dataclass(frozen=True)
class Instance:
    """One instance of a stage, as a plan or a record knows it; `seconds` where it has run."""

    name: str
    stage: str
    kind: str
    needs: tuple[str, ...]
    state: str = ""
    seconds: float | None = None


class Box(NamedTuple):
    """Where a node is drawn: its upper left corner, width and height."""

    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """A finished arrangement: boxes by name, edges as `(from, to, points from top to bottom)`."""

    boxes: Mapping[str, Box]
    edges: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
    width: float
    height: float


def fold(instances: Iterable[Instance]) -> list[Node]:
    """Return the boxes for these instances: those of a stage with many of them form a stack."""
    instances = list(instances)
    sizes = Counter(instance.stage for instance in instances)
    few = _FEW if sum(size if size <= _FEW else 1 for size in sizes.values()) <= _BOXES else 1
    stages = list(sizes)
    groups: dict[str, list[Instance]] = {}
    for instance in sorted(instances, key=lambda instance: stages.index(instance.stage)):
        name = instance.name if sizes[instance.stage] <= few else instance.stage
        groups.setdefault(name, []).append(instance)
    box = {instance.name: name for name, members in groups.items() for instance in members}
    nodes = []
    for name, members in groups.items():
        needs = tuple(dict.fromkeys(box[need] for instance in members for need in instance.needs))
        states = [instance.state for instance in members]
        state = next((first for first in _FIRST if first in states), states[0])
        counts = Counter(_WORDS.get(state, state) for state in states if state)
        words = [f"{count} {word}" if len(members) > 1 else word for word, count in counts.items()]
        seconds = sum(instance.seconds or 0 for instance in members)
        detail = " · ".join([*words, *([duration(seconds)] if seconds else [])])
        nodes.append(Node(name, members[0].kind, needs, state, detail, len(members)))
    return nodes


# --- the arrangement -------------------------------------------------------------------------------------


def arrange(nodes: Sequence[Node]) -> Layout:
    """Place boxes and edges; the order of `nodes` must put each after what it needs."""
    needed = _reduced(nodes)
    rank: dict[str, int] = {}
    for node in nodes:
        rank[node.name] = 1 + max((rank[need] for need in node.needs), default=-1)
    layers: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    widths = {node.name: node.width for node in nodes}
    above: dict[str, list[str]] = {node.name: [] for node in nodes}
    paths: list[list[str]] = []
    for node in nodes:
        layers[rank[node.name]].append(node.name)
        for need in needed[node.name]:
            between = [f"{need}\0{node.name}\0{layer}" for layer in range(rank[need] + 1, rank[node.name])]
            path = [need, *between, node.name]
            for point, layer in zip(between, layers[rank[need] + 1 :], strict=False):
                layer.append(point)
                widths[point] = 0.0
            for upper, lower in pairwise(path):
                above.setdefault(lower, []).append(upper)
            paths.append(path)
    centres = _centres(layers, above, widths)
    left = min((centres[name] - width / 2 for name, width in widths.items()), default=0.0)
    right = max((centres[name] + width / 2 for name, width in widths.items()), default=0.0)
    x = {name: centre + _MARGIN - left for name, centre in centres.items()}
    y = {
        name: _MARGIN + index * (_BOX_HEIGHT + _GAP_Y) for index, layer in enumerate(layers) for name in layer
    }
    boxes = {name: Box(x[name] - widths[name] / 2, y[name], widths[name], _BOX_HEIGHT) for name in rank}
    # Each point has an upper and a lower end; an edge leaves the first box below and enters the last above.
    ends = {name: [(x[name], y[name]), (x[name], y[name] + _BOX_HEIGHT)] for name in x}
    edges = [(path[0], path[-1], [end for name in path for end in ends[name]][1:-1]) for path in paths]
    height = 2 * _MARGIN + len(layers) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    return Layout(boxes, edges, right - left + 2 * _MARGIN, height)


def _reduced(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Return the needs of each node without those that another of its needs has already."""
    ancestors: dict[str, set[str]] = {}
    needed = {}
    for node in nodes:
        farther = {name for need in node.needs for name in ancestors[need]}
        ancestors[node.name] = {*node.needs, *farther}
        needed[node.name] = [need for need in node.needs if need not in farther]
    return needed


def _centres(
    layers: list[list[str]], above: Mapping[str, Sequence[str]], widths: Mapping[str, float]
) -> dict[str, float]:
    below: dict[str, list[str]] = {name: [] for name in widths}
    for name, uppers in above.items():
        for upper in uppers:
            below[upper].append(name)
    centres: dict[str, float] = {}
    for layer in layers:
        centres |= _apart(dict.fromkeys(layer, 0.0), widths)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for layer in layers if down else reversed(layers):
            wishes = {
                name: fmean(centres[other] for other in near[name]) if near[name] else centres[name]
                for name in layer
            }
            layer.sort(key=wishes.__getitem__)  # stable: equal wishes keep their order
            centres |= _apart({name: wishes[name] for name in layer}, widths)
    return centres


def _apart(wishes: Mapping[str, float], widths: Mapping[str, float]) -> dict[str, float]:
    """Return the centres nearest to `wishes` (least squares) that keep order and gaps.

    With the gaps taken off, that is isotonic regression: neighbours that would overlap share their mean.
    """
    offsets = [0.0]
    for left, right in pairwise(wishes):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + _GAP_X)
    pools: list[tuple[float, int]] = []  # (mean, members)
    for wish, offset in zip(wishes.values(), offsets, strict=False):
        mean, members = wish - offset, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, members = (other * count + mean * members) / (count + members), count + members
        pools.append((mean, members))
    means = [mean for mean, members in pools for _ in range(members)]
    return {name: mean + offset for name, mean, offset in zip(wishes, means, offsets, strict=False)}


# --- the drawing -----------------------------------------------------------------------------------------


def svg(nodes: Sequence[Node], *, title: str, standalone: bool = False) -> str:
    """Return the drawing.

    Args:
        title: what it shows, for those who cannot see it.
        standalone: with style and background, for a file; otherwise for a page that has the style.
    """
    layout = arrange(nodes)
    stacked = {node.name for node in nodes if node.count > 1}
    drawn = [_edge(points, _STACK * (to in stacked)) for _, to, points in layout.edges]
    drawn += [_drawn(node, layout.boxes[node.name]) for node in nodes]
    width, height = round(layout.width), round(layout.height)
    space, style = "", ""
    if standalone:
        space = ' xmlns="http://www.w3.org/2000/svg"'
        style = f'<style>{theme.drawing_css()}</style><rect class="t-paper" width="100%" height="100%"/>'
    body = "\n".join(drawn)
    return (
        f'<svg{space} role="img" aria-label="{_escaped(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        f'font-family="system-ui,-apple-system,Segoe UI,Roboto,Noto Sans,sans-serif">\n'
        f"<title>{_escaped(title)}</title>{style}\n{body}\n</svg>\n"
    )


def _escaped(words: str) -> str:
    # XML has no form for control characters and halves of pairs: a file with one cannot be opened.
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", words))


def _edge(points: Sequence[tuple[float, float]], short_by: float) -> str:
    *inner, (x, y) = points
    end = y - 6 - short_by  # room for the arrow's head
    steps = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (from_x, from_y), (to_x, to_y) in pairwise([*inner, (x, end)]):
        half = (from_y + to_y) / 2
        steps.append(f"C{from_x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}")
    head = f"M{x - 4:.1f} {end - 2:.1f}L{x + 4:.1f} {end - 2:.1f}L{x:.1f} {end + 6:.1f}Z"
    return f'<path class="t-edge" d="{"".join(steps)}" stroke-width="1.4"/><path class="t-head" d="{head}"/>'


def _drawn(node: Node, box: Box) -> str:
    bad = node.state in _BAD
    dash = "5 4" if node.state in _REUSED else "1.5 4" if node.state in _IDLE else ""
    style = f'class="{theme.kind_class(node.kind)}{" t-broken" if bad else ""}"'
    style += f' stroke-width="{3 if bad else 1.6}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    gaps = (_STACK, _STACK / 2, 0) if node.count > 1 else (0,)
    shapes = "".join(_shape(node.kind, box._replace(x=box.x + gap, y=box.y - gap), style) for gap in gaps)
    middle, top = box.x + box.width / 2, box.y + (4 if node.kind == "data" else 0)
    tip = _escaped(f"{node.name}: {node.kind}" + (f", {node.detail}" if node.detail else ""))
    return (
        f"<g><title>{tip}</title>{shapes}"
        f'<text class="t-text" x="{middle:.1f}" y="{top + 27:.1f}" text-anchor="middle" font-size="14" '
        f'font-weight="600">{_escaped(node.title)}</text>'
        f'<text class="{"t-bad" if bad else "t-soft"}" x="{middle:.1f}" y="{top + 44:.1f}"'
        f' text-anchor="middle" font-size="12">{_escaped(cut(node.subtitle, _LONGEST + 8))}</text></g>'
    )


def _shape(kind: str, box: Box, style: str) -> str:
    """Return the outline of a kind: each has a shape of its own beside its colour."""
    x, y, w, h = box
    r = x + w
    if kind == "data":  # a drum
        return (
            f'<path {style} d="M{x:.1f} {y + 7}A{w / 2:.1f} 7 0 0 1 {r:.1f} {y + 7}V{y + h - 7}'
            f'A{w / 2:.1f} 7 0 0 1 {x:.1f} {y + h - 7}Z"/>'
            f'<ellipse {style} cx="{x + w / 2:.1f}" cy="{y + 7}" rx="{w / 2:.1f}" ry="7"/>'
        )
    corners = {
        "probe": ((x + 14, y), (r - 14, y), (r, y + h / 2), (r - 14, y + h), (x + 14, y + h), (x, y + h / 2)),
        "evaluate": ((x + 12, y), (r, y), (r - 12, y + h), (x, y + h)),
        "report": ((x, y), (r - 14, y), (r, y + 14), (r, y + h), (x, y + h)),
    }
    if kind in corners:
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners[kind])
        fold_line = f'<path {style} d="M{r - 14:.1f} {y}V{y + 14}H{r:.1f}"/>' if kind == "report" else ""
        return f'<polygon {style} points="{points}"/>{fold_line}'
    round_by = {"pretrain": 14, "command": h / 2}.get(kind, 3)
    return f'<rect {style} x="{x:.1f}" y="{y}" width="{w:.1f}" height="{h}" rx="{round_by}"/>'


# --- Mermaid ---------------------------------------------------------------------------------------------

_MERMAID: Final = {
    "data": '[("{}")]',
    "pretrain": '("{}")',
    "probe": '{{{{"{}"}}}}',
    "evaluate": '[/"{}"/]',
    "report": '[["{}"]]',
    "command": '(["{}"])',
}
# Mermaid's own form of HTML's entities: `#quot;` for `&quot;`.
_ENTITIES: Final = str.maketrans({"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;"})


def mermaid(nodes: Sequence[Node]) -> str:
    """Return the graph as Mermaid text, as READMEs and wikis draw it."""
    ids = {node.name: f"s{index}" for index, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        words = "<br>".join(text.translate(_ENTITIES) for text in (node.title, node.subtitle) if text)
        shape = _MERMAID.get(node.kind, '["{}"]')
        lines.append(f"    {ids[node.name]}{shape.format(words)}")
    for name, needs in _reduced(nodes).items():
        lines += [f"    {ids[need]} --> {ids[name]}" for need in needs]
    for states, style in (
        (_REUSED, "stroke-dasharray:5 4"),
        (_IDLE, "stroke-dasharray:2 4"),
        (_BAD, "stroke-width:4px"),
    ):
        lines += [f"    style {ids[node.name]} {style}" for node in nodes if node.state in states]
    return "\n".join(lines) + "\n"
