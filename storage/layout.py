"""The layout of a home: its number in `layout.json`, and the names of all that a home has."""

import json
from pathlib import Path

from bardflow.errors import BardError
from bardflow.storage.copies import COPIES, Copies
from bardflow.storage.disk import DRAFTS, SET_ASIDE, write_whole
from bardflow.storage.handles import Handle

LAYOUT_FILE = "layout.json"
# 1: versions before `bard verify`, without this file. 2: with copies and stamps.
HOME_LAYOUT = 2
OBJECTS = "objects"
STAMPS = "stamps"
# The folder of fetched files in a source: one of them may be called manifest.json.
RAW = "raw"
# What the home remembers of its remote.
REMOTE = "remote"
# What runs that changed nothing used and said (tasks/receipts.py).
RECEIPTS = "receipts"
# All files and folders of a home; `bard verify` lists others as foreign.
HOME_NAMES = {
    OBJECTS, "refs", DRAFTS, "downloads", "searches", "locks", "logs", "prefect", "supervisors", COPIES, STAMPS,
    REMOTE, RECEIPTS, SET_ASIDE, LAYOUT_FILE, "index.html", "up.lock", "removing.lock",
}  # fmt: skip


class LayoutError(BardError):
    """The home was written by a newer version, or its layout number cannot be read."""


def place_of(root: Path, handle: Handle) -> Path:
    """The path of an artifact in a home, whether or not it exists."""
    return root / OBJECTS / handle.kind / handle.digest


def layout_content() -> bytes:
    """The content of `layout.json` in a home of this version."""
    return json.dumps({"layout": HOME_LAYOUT}).encode() + b"\n"


def note_layout(root: Path) -> None:
    """Write the layout number of this version into a home."""
    write_whole(root / LAYOUT_FILE, layout_content(), root / DRAFTS)
    Copies(root).write(root / LAYOUT_FILE, layout_content())


def require_layout(root: Path) -> int:
    """Return the layout number of a home that this version can read; 1 for a home without the file.

    Raises:
        LayoutError: the number is of a newer version, or cannot be read.
    """
    path = root / LAYOUT_FILE
    content = Copies(root).read(path)
    if content is None:
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return 1
    try:
        number = json.loads(content)["layout"]
    except (ValueError, LookupError, TypeError):
        number = None
    if not isinstance(number, int) or number < 1:
        raise LayoutError(
            f"{path} has no layout number; if this version of bardflow wrote the home, delete that file, and "
            "`bard verify --repair` writes it again"
        )
    if number > HOME_LAYOUT:
        raise LayoutError(
            f"the home {root} has layout {number}, and this version of bardflow reads layouts 1 to {HOME_LAYOUT}; "
            "install the newer version that wrote it, or name another folder with BARDFLOW_HOME"
        )
    return number
