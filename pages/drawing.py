"""matplotlib figures as inline SVGs with the page's colours and font."""

import io
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib's settings are global, but two flows may draw in two threads.
_DRAWING = threading.Lock()
# matplotlib does not accept CSS variables: it draws with these colours, which are replaced afterwards.
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
    """Call `draw` and return its figure as an inline SVG.

    `name` is the prefix of all ids; each drawing on a page needs its own. The SVG backend draws 72 units for each inch,
    and one unit is one CSS pixel. Text is about 12 px high at any width.
    """
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 12, "path.simplify": False}
    with _DRAWING, matplotlib.style.context(["default", style]):
        figure = draw()
        file = io.BytesIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=undated)
    return _inline(file.getvalue(), name, title, description)


def plain_axes(axes: Axes) -> None:
    """Use the page's text colour, no ticks, and only the lower line of the frame."""
    axes.tick_params(which="both", length=0, colors=TEXT, pad=5)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(GRID)


def _inline(svg: bytes, name: str, title: str, description: str) -> str:
    """Adapt matplotlib's SVG to a page: ids, font and colours of the page, a title for screen readers."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        if element.tag == "g":
            # All drawings use the same ids of groups, such as figure_1, and nothing refers to them.
            element.attrib.pop("id", None)
        if element.tag == "text":
            # Font and colour come from the page's style sheet.
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
    """The name of an element or attribute without its namespace."""
    return name.rpartition("}")[2]
