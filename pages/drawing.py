"""matplotlib's drawings as inline SVGs that take their colours and their font from the page."""

import io
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib's settings are one global; two flows that draw at once in two threads must not see each other's.
_DRAWING = threading.Lock()
# matplotlib wants colours, the page has variables: each colour here is a mark that is replaced after drawing.
_INKS = {
    "#010101": "var(--ink-soft)",
    "#020202": "var(--rule)",
    "#030303": "var(--train)",
    "#040404": "var(--validation)",
    "#050505": "var(--paper)",
    "#060606": "var(--bad)",
    "#070707": "var(--good)",
    "#080808": "var(--bar)",
}
TEXT, GRID, TRAIN, VALIDATION, PAPER, BAD, GOOD, BAR = _INKS


def inline_svg(draw: Callable[[], Figure], *, name: str, title: str, description: str) -> str:
    """What `draw` makes, as an SVG to stand in a page.

    `name` starts every id in the drawing: two drawings on one page need two names. The SVG backend draws 72 units an
    inch, and one unit is one CSS pixel. Text is about 12 px high at any width.
    """
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 12, "path.simplify": False}
    with _DRAWING, matplotlib.style.context(["default", style]):
        figure = draw()
        file = io.BytesIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=undated)
    return _inline(file.getvalue(), name, title, description)


def plain_axes(axes: Axes) -> None:
    """Labels in the page's ink, no ticks, and of the frame only the line below."""
    axes.tick_params(which="both", length=0, colors=TEXT, pad=5)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(GRID)


def _inline(svg: bytes, name: str, title: str, description: str) -> str:
    """Makes matplotlib's file part of a page: its own ids, the page's font and colours, a title for screen readers."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        if element.tag == "g":
            # Groups are named figure_1, axes_1… in every drawing, and nothing points at them.
            element.attrib.pop("id", None)
        if element.tag == "text":
            # Font and colour come from the page's style sheet; only the anchor is matplotlib's.
            drawn = element.attrib["style"].split(";")
            element.set("style", next(part.strip() for part in drawn if "text-anchor" in part))
        for mark, ink in _INKS.items():
            if mark in element.get("style", ""):
                element.set("style", element.attrib["style"].replace(mark, ink))
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for position, (tag, text, key) in enumerate((("title", title, "title"), ("desc", description, "description"))):
        label = ET.Element(tag, {"id": f"{name}-{key}"})
        label.text = text
        root.insert(position, label)
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """An element's or attribute's name without its namespace: HTML knows `svg` and `href` by themselves."""
    return name.rpartition("}")[2]
