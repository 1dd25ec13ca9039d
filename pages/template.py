"""What all pages share: one style sheet, one script that reading does not need, and the words of numbers."""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pages import wording

# Reading needs no script; this one lets a reader choose the other theme than the system's and step through a passage.
SCRIPT = """
const button = document.getElementById("theme"), root = document.documentElement;
const system = () => matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
const dark = () => (root.dataset.theme ?? system()) === "dark";
const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; label(); };
button.hidden = false; label();
const passage = document.getElementById("passage"), expected = document.getElementById("expected");
if (passage) {
  const pieces = [...passage.children];
  let at = -1;
  const show = (i) => {
    if (i < 0 || i >= pieces.length) return;
    pieces[at]?.classList.remove("here");
    at = i;
    pieces[at].classList.add("here");
    expected.textContent = pieces[at].dataset.expected;
  };
  // The title is what a reader without scripts gets; with them it would cover the text.
  for (const piece of pieces) { piece.dataset.expected = piece.title; piece.removeAttribute("title"); }
  passage.onpointerover = (event) => show(pieces.indexOf(event.target));
  passage.onkeydown = (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10}[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), pieces.length - 1));
  };
  passage.onfocus = () => { if (at < 0) show(0); };
}
"""


def fill(template: str, **values: Any) -> str:
    """One self-contained HTML document: no network, no script needed to read it."""
    return (
        _environment()
        .get_template(template)
        .render(
            style=resources.files("pages").joinpath("report.css").read_text("utf-8"),
            script=SCRIPT,
            script_hash=_content_hash(SCRIPT),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.gap, wording.grouped, wording.memory, wording.moment, wording.score, wording.setting)
    more = (wording.quoted, wording.share, wording.span, wording.visible)
    environment.filters |= {function.__name__: function for function in (*words, *more)}
    environment.globals["percent"] = wording.percent
    environment.tests["web_address"] = _web_address
    return environment


def _web_address(text: str) -> bool:
    """Whether the text may be a link: any other scheme (`javascript:`, `data:`) is shown as text only."""
    return text.startswith(("https://", "http://"))


def _content_hash(script: str) -> str:
    """The script's name in a content security policy, which lets this one run and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
