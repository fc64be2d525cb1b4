"""The graph of a pipeline's stages as a drawing (SVG) and as Mermaid text.

Layers from top to bottom: each box stands below all that it needs. Edges that follow from others are left
out. Inside a layer, boxes are ordered by the places of their neighbours; then each takes the place nearest
to the mean of its neighbours that leaves the order and the gaps as they are. An edge over several layers
has an invisible point in each layer between, which keeps room for it, so no line runs through a box.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tats_core.report import theme
from tats_core.report.units import duration

_FEW = 3  # instances of a stage that are drawn one by one …
_BOXES = 10  # … if the whole drawing has no more boxes than this

_BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 58, 26, 44, 14
_LETTER, _PADDING, _NARROWEST = 7.7, 46, 136
_LONGEST = 34  # letters of a name; the rest is cut
_SWEEPS = 8
_STACK = 8  # how far the hindmost of a stack stands out

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


@dataclass(frozen=True)
class Instance:
    """One instance of a stage, as a plan or a record knows it; `seconds` where it has run."""

    name: str
    stage: str
    kind: str
    needs: tuple[str, ...]
    state: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Box:
    """Where a node is drawn: its upper left corner, width and height."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """A finished arrangement: boxes by name, edges as `(from, to, points from top to bottom)`."""

    boxes: Mapping[str, Box]
    edges: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
    width: float
    height: float


def fold(instances: Iterable[Instance]) -> list[Node]:
    """Return the boxes for these instances: a stage with many is one stack, one with few is drawn whole."""
    stages: dict[str, list[Instance]] = {}
    for one in instances:
        stages.setdefault(one.stage, []).append(one)
    whole = {name for name, members in stages.items() if len(members) <= _FEW}
    if sum(len(members) if name in whole else 1 for name, members in stages.items()) > _BOXES:
        whole = {name for name, members in stages.items() if len(members) == 1}
    box = {
        one.name: one.name if name in whole else name for name, members in stages.items() for one in members
    }
    nodes = []
    for name, members in stages.items():
        groups = [[one] for one in members] if name in whole else [members]
        for group in groups:
            needs = dict.fromkeys(box[need] for one in group for need in one.needs)
            nodes.append(
                Node(
                    box[group[0].name], group[0].kind, tuple(needs), _state(group), _detail(group), len(group)
                )
            )
    return nodes


def _state(group: Sequence[Instance]) -> str:
    states = {one.state for one in group}
    return next((state for state in _FIRST if state in states), group[0].state)


def _detail(group: Sequence[Instance]) -> str:
    counts = Counter(_WORDS.get(one.state, one.state) for one in group if one.state)
    said = [f"{count} {state}" if len(group) > 1 else state for state, count in counts.items()]
    seconds = [one.seconds for one in group if one.seconds]
    return " · ".join([*said, *([duration(sum(seconds))] if seconds else [])])


def arrange(nodes: Sequence[Node]) -> Layout:
    """Place boxes and edges; the order of `nodes` must put each after what it needs."""
    reduced = _reduced(nodes)
    rank: dict[str, int] = {}
    for node in nodes:
        rank[node.name] = 1 + max((rank[need] for need in node.needs), default=-1)
    widths: dict[str, float] = {node.name: _width(node) for node in nodes}
    layers: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    above: dict[str, list[str]] = {node.name: [] for node in nodes}
    paths: list[list[str]] = []
    for node in nodes:
        layers[rank[node.name]].append(node.name)
        for need in reduced[node.name]:
            path = [need]
            for layer in range(rank[need] + 1, rank[node.name]):
                point = f"{need}\0{node.name}\0{layer}"
                widths[point], above[point] = 0.0, [path[-1]]
                layers[layer].append(point)
                path.append(point)
            above[node.name].append(path[-1])
            paths.append([*path, node.name])
    centres = _centres(layers, above, widths)
    left = min((centres[one] - widths[one] / 2 for one in centres), default=0.0)
    right = max((centres[one] + widths[one] / 2 for one in centres), default=0.0)
    shift = _MARGIN - left
    tops = [_MARGIN + place * (_BOX_HEIGHT + _GAP_Y) for place in range(len(layers))]
    level = {name: place for place, layer in enumerate(layers) for name in layer}
    boxes = {
        node.name: Box(
            centres[node.name] + shift - widths[node.name] / 2,
            tops[level[node.name]],
            widths[node.name],
            _BOX_HEIGHT,
        )
        for node in nodes
    }
    edges = []
    for path in paths:
        points = [(centres[path[0]] + shift, tops[level[path[0]]] + _BOX_HEIGHT)]
        for point in path[1:-1]:
            x, y = centres[point] + shift, tops[level[point]]
            points += [(x, y), (x, y + _BOX_HEIGHT)]
        points.append((centres[path[-1]] + shift, tops[level[path[-1]]]))
        edges.append((path[0], path[-1], points))
    height = 2 * _MARGIN + len(layers) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    return Layout(boxes, edges, right - left + 2 * _MARGIN, height)


def _reduced(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Return the needs of each node without those that another of its needs has already."""
    bit = {node.name: 1 << place for place, node in enumerate(nodes)}
    reached: dict[str, int] = {}  # all ancestors, as bits
    reduced = {}
    for node in nodes:
        through = 0
        for need in node.needs:
            through |= reached[need]
        reduced[node.name] = [need for need in node.needs if not through & bit[need]]
        reached[node.name] = through | sum(bit[need] for need in set(node.needs) if not through & bit[need])
    return reduced


def _centres(
    layers: list[list[str]], above: Mapping[str, Sequence[str]], widths: Mapping[str, float]
) -> dict[str, float]:
    below: dict[str, list[str]] = {name: [] for layer in layers for name in layer}
    for name, uppers in above.items():
        for upper in uppers:
            below[upper].append(name)
    centres: dict[str, float] = {}
    for layer in layers:
        centres |= dict(zip(layer, _apart([0.0] * len(layer), [widths[one] for one in layer]), strict=True))
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            sides = above if down else below
            wish = {
                one: sum(centres[near] for near in sides[one]) / len(sides[one])
                if sides[one]
                else centres[one]
                for one in layer
            }
            layer.sort(key=wish.__getitem__)  # stable: equal wishes keep their order
            placed = _apart([wish[one] for one in layer], [widths[one] for one in layer])
            centres |= dict(zip(layer, placed, strict=True))
    return centres


def _apart(wishes: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Return the centres nearest to `wishes` (least squares) that keep order and gaps.

    With the gaps taken off, that is isotonic regression: neighbours that would overlap share their mean.
    """
    offsets: list[float] = []
    for place, width in enumerate(widths):
        before = offsets[-1] + (widths[place - 1] + width) / 2 + _GAP_X if place else 0.0
        offsets.append(before)
    pools: list[tuple[float, int]] = []  # (mean, members)
    for wish, offset in zip(wishes, offsets, strict=True):
        mean, members = wish - offset, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, members = (other * count + mean * members) / (count + members), count + members
        pools.append((mean, members))
    means = [mean for mean, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def svg(nodes: Sequence[Node], *, title: str, standalone: bool = False) -> str:
    """Return the drawing.

    Args:
        title: what it shows, for those who cannot see it.
        standalone: a file of its own, with style and background; else for a page with the same style.
    """
    layout = arrange(nodes)
    stacked = {node.name for node in nodes if node.count > 1}
    drawn = [_edge(points, _STACK * (to in stacked)) for _, to, points in layout.edges]
    drawn += [_drawn(node, layout.boxes[node.name]) for node in nodes]
    width, height = round(layout.width), round(layout.height)
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    style = (
        f'<style>{theme.drawing_css()}</style><rect class="t-paper" width="100%" height="100%"/>'
        if standalone
        else ""
    )
    body = "\n".join(drawn)
    return (
        f'<svg{space} role="img" aria-label="{html.escape(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        f'font-family="system-ui,-apple-system,Segoe UI,Roboto,Noto Sans,sans-serif">\n'
        f"<title>{html.escape(title)}</title>{style}\n{body}\n</svg>\n"
    )


def _name(node: Node) -> str:
    times = f" × {node.count}" if node.count > 1 else ""
    room = _LONGEST - len(times)
    return (node.name if len(node.name) <= room else node.name[: room - 1] + "…") + times


def _second(node: Node) -> str:
    return " · ".join(part for part in (node.kind if node.kind != node.name else "", node.detail) if part)


def _width(node: Node) -> float:
    letters = max(len(_name(node)), 0.88 * min(len(_second(node)), _LONGEST + 8))
    return max(_NARROWEST, letters * _LETTER + _PADDING)


def _edge(points: Sequence[tuple[float, float]], short_by: float) -> str:
    (x, y), *rest = points
    steps = [f"M{x:.1f} {y:.1f}"]
    for place, (to_x, to_y) in enumerate(rest):
        end = to_y - (6 + short_by if place == len(rest) - 1 else 0)  # room for the arrow's head
        half = (y + end) / 2
        steps.append(f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {end:.1f}")
        x, y = to_x, end
    head = f"M{x - 4:.1f} {y - 2:.1f}L{x + 4:.1f} {y - 2:.1f}L{x:.1f} {y + 6:.1f}Z"
    return f'<path class="t-edge" d="{"".join(steps)}" stroke-width="1.4"/><path class="t-head" d="{head}"/>'


def _drawn(node: Node, box: Box) -> str:
    dash = ' stroke-dasharray="5 4"' if node.state in _REUSED else ""
    dash = ' stroke-dasharray="1.5 4"' if node.state in _IDLE else dash
    thick = 3 if node.state in _BAD else 1.6
    broken = " t-broken" if node.state in _BAD else ""
    look = f'class="{theme.kind_class(node.kind)}{broken}" stroke-width="{thick}"{dash}'
    behind = (
        [replace(box, x=box.x + gap, y=box.y - gap) for gap in (_STACK, _STACK / 2)] if node.count > 1 else []
    )
    shapes = [_shape(node.kind, one, look) for one in (*behind, box)]
    middle, top = box.x + box.width / 2, box.y + (4 if node.kind == "data" else 0)
    second = _second(node)
    second = second if len(second) <= _LONGEST + 8 else second[: _LONGEST + 7] + "…"
    colour = "t-bad" if node.state in _BAD else "t-soft"
    whole = html.escape(f"{node.name}: {node.kind}" + (f", {node.detail}" if node.detail else ""))
    return (
        f"<g><title>{whole}</title>{''.join(shapes)}"
        f'<text class="t-text" x="{middle:.1f}" y="{top + 27:.1f}" text-anchor="middle" font-size="14" '
        f'font-weight="600">{html.escape(_name(node))}</text>'
        f'<text class="{colour}" x="{middle:.1f}" y="{top + 44:.1f}" text-anchor="middle" font-size="12">'
        f"{html.escape(second)}</text></g>"
    )


def _shape(kind: str, box: Box, look: str) -> str:
    """Return the outline of a kind: each has a shape of its own beside its colour."""
    x, y, w, h = box.x, box.y, box.width, box.height
    r = x + w
    if kind == "data":  # a drum
        return (
            f'<path {look} d="M{x:.1f} {y + 7}A{w / 2:.1f} 7 0 0 1 {r:.1f} {y + 7}V{y + h - 7}'
            f'A{w / 2:.1f} 7 0 0 1 {x:.1f} {y + h - 7}Z"/>'
            f'<ellipse {look} cx="{x + w / 2:.1f}" cy="{y + 7}" rx="{w / 2:.1f}" ry="7"/>'
        )
    corners = {
        "probe": ((x + 14, y), (r - 14, y), (r, y + h / 2), (r - 14, y + h), (x + 14, y + h), (x, y + h / 2)),
        "evaluate": ((x + 12, y), (r, y), (r - 12, y + h), (x, y + h)),
        "report": ((x, y), (r - 14, y), (r, y + 14), (r, y + h), (x, y + h)),
    }
    if kind in corners:
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners[kind])
        fold_line = f'<path {look} d="M{r - 14:.1f} {y}V{y + 14}H{r:.1f}"/>' if kind == "report" else ""
        return f'<polygon {look} points="{points}"/>{fold_line}'
    round_by = {"pretrain": 14, "command": h / 2}.get(kind, 3)
    return f'<rect {look} x="{x:.1f}" y="{y}" width="{w:.1f}" height="{h}" rx="{round_by}"/>'


_PLAIN: Final = '["{}"]'
_MERMAID: Final = {
    "data": '[("{}")]',
    "pretrain": '("{}")',
    "probe": '{{{{"{}"}}}}',
    "evaluate": '[/"{}"/]',
    "report": '[["{}"]]',
    "command": '(["{}"])',
}


def mermaid(nodes: Sequence[Node]) -> str:
    """Return the graph as Mermaid text, as READMEs and wikis draw it."""
    ids = {node.name: f"s{place}" for place, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        second = _second(node)
        words = _entities(_name(node)) + (f"<br>{_entities(second)}" if second else "")
        lines.append(f"    {ids[node.name]}{_MERMAID.get(node.kind, _PLAIN).format(words)}")
    for name, needs in _reduced(nodes).items():
        lines += [f"    {ids[need]} --> {ids[name]}" for need in needs]
    for states, style in (
        (_REUSED, "stroke-dasharray:5 4"),
        (_IDLE, "stroke-dasharray:2 4"),
        (_BAD, "stroke-width:4px"),
    ):
        lines += [f"    style {ids[node.name]} {style}" for node in nodes if node.state in states]
    return "\n".join(lines) + "\n"


def _entities(words: str) -> str:
    # Mermaid's own form of HTML's entities: `#quot;` for `&quot;`. A `#` first, which begins them.
    for letter, entity in (("#", "#35;"), ("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        words = words.replace(letter, entity)
    return words
