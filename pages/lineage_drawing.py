"""The lineage of a model as a drawing: a box for each artifact, and arrows to artifacts made from it."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bardflow.pages.drawing import GRID, PAPER, TEXT, VALIDATION, inline_svg

# A box and the gap to the next, in CSS pixels.
BOX_WIDTH, BOX_HEIGHT = 96, 40
GAP_ACROSS, GAP_ALONG = 18, 34


class Node(NamedTuple):
    """An artifact: its kind, its digest, and the digests of its inputs."""

    kind: str
    digest: str
    inputs: tuple[str, ...]


class _Box(NamedTuple):
    name: str
    detail: str
    rank: int
    slot: int


def lineage_drawing(nodes: Sequence[Node], *, name: str, width: float) -> str:
    """Draw the nodes, sources first, from left to right or, if narrow, from top to bottom; legs share one box.

    `name` is the prefix of all ids.
    """
    boxes, arrows = _laid_out(nodes)
    said = ", ".join(f"{box.name} {box.detail}" for box in boxes)
    return inline_svg(
        partial(_drawn, boxes, arrows, width),
        name=name,
        title="Lineage",
        description=f"From the source to the model: {said}.",
    )


def _laid_out(nodes: Sequence[Node]) -> tuple[list[_Box], list[tuple[int, int]]]:
    """Return the boxes, and the arrows as pairs of box indices; a box's rank is higher than those of its inputs."""
    box_of: dict[str, int] = {}
    members: list[list[Node]] = []
    for node in nodes:
        alike = (box_of[d] for d in node.inputs if d in box_of and members[box_of[d]][-1].kind == node.kind)
        before = next(alike, None)
        if before is None:
            members.append([node])
            box_of[node.digest] = len(members) - 1
        else:
            members[before].append(node)
            box_of[node.digest] = before
    arrows = sorted(
        {
            (box_of[digest], box_of[node.digest])
            for node in nodes
            for digest in node.inputs
            if digest in box_of and box_of[digest] != box_of[node.digest]
        }
    )
    ranks = [0] * len(members)
    # Repeated as often as there are boxes, because legs in one box can make an arrow point back.
    for _ in members:
        for start, end in arrows:
            ranks[end] = min(len(members), max(ranks[end], ranks[start] + 1))
    slots: dict[int, int] = {}
    boxes = []
    for held, rank in zip(members, ranks, strict=True):
        slot = slots.setdefault(rank, 0)
        slots[rank] += 1
        kind = held[0].kind if len(held) == 1 else f"{len(held)} {held[0].kind}s"
        boxes.append(_Box(kind, held[-1].digest[:8], rank, slot))
    return boxes, arrows


def _drawn(boxes: list[_Box], arrows: list[tuple[int, int]], width: float) -> Figure:
    ranks = max((box.rank for box in boxes), default=0) + 1
    lanes = max((box.slot for box in boxes), default=0) + 1
    across = width >= ranks * BOX_WIDTH
    step = width / ranks if across else BOX_HEIGHT + GAP_ALONG
    lane = (BOX_HEIGHT + GAP_ALONG) if across else BOX_WIDTH + GAP_ACROSS + 20
    # Room for arrows that pass other boxes.
    bow = 44
    size = (width, lanes * lane + bow) if across else (max(width, lanes * lane + bow), ranks * step)
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.set_axis_off()
    centre = [
        ((box.rank + 0.5) * step, bow + (box.slot + 0.5) * lane)
        if across
        else (bow + (box.slot + 0.5) * lane, (box.rank + 0.5) * step)
        for box in boxes
    ]
    half = min(BOX_WIDTH, step - GAP_ACROSS if across else BOX_WIDTH) / 2
    for start, end in arrows:
        near = boxes[end].rank - boxes[start].rank == 1
        (x0, y0), (x1, y1) = centre[start], centre[end]
        if across:
            tail, head = ((x0 + half, y0), (x1 - half, y1)) if near else ((x0, y0 - 20), (x1, y1 - 20))
        else:
            tail, head = ((x0, y0 + 20), (x1, y1 - 20)) if near else ((x0 - half, y0), (x1 - half, y1))
        bend = 0.0 if near else (-0.25 if across else 0.25)
        axes.annotate(
            "",
            head,
            tail,
            arrowprops={
                "arrowstyle": "-|>",
                "color": GRID if not near else TEXT,
                "linewidth": 1.1,
                "shrinkA": 0,
                "shrinkB": 0,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )
    for box, (x, y) in zip(boxes, centre, strict=True):
        axes.add_patch(_rectangle((x - half, y - BOX_HEIGHT / 2), 2 * half, BOX_HEIGHT))
        axes.text(x, y - 4, box.name, ha="center", va="center", color=TEXT)
        axes.text(x, y + 12, box.detail, ha="center", va="center", color=TEXT)
    return figure


def _rectangle(corner: tuple[float, float], width: float, height: float) -> Rectangle:
    return Rectangle(corner, width, height, facecolor=PAPER, edgecolor=VALIDATION, linewidth=1.4, zorder=3)
