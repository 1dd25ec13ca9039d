"""Rendering of all pages: templates, style sheet, script and filters."""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bardflow.pages import wording

# The script for the theme button, the passage with its surprises, and the page that generates text.
SCRIPT = r"""
const button = document.getElementById("theme"), root = document.documentElement;
const system = () => matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
const dark = () => (root.dataset.theme ?? system()) === "dark";
const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; label(); };
button.hidden = false; label();
const passage = document.getElementById("passage"), expected = document.getElementById("expected");
if (passage) {
  let here = null;
  const show = (piece) => {
    if (!piece || piece === passage) return;
    here?.classList.remove("here");
    here = piece;
    here.classList.add("here");
    expected.textContent = here.dataset.expected;
  };
  // The title is what a reader without scripts gets; with them it would cover the text.
  for (const piece of passage.children) { piece.dataset.expected = piece.title; piece.removeAttribute("title"); }
  passage.onpointerover = (event) => show(event.target);
  passage.onkeydown = (event) => {
    const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10}[event.key];
    if (!steps) return;
    event.preventDefault();
    for (let i = 0; i < Math.abs(steps); i++) {
      show(steps > 0 ? (here ? here.nextElementSibling : passage.firstElementChild) : here?.previousElementSibling);
    }
  };
  passage.onfocus = () => { if (!here) show(passage.firstElementChild); };
}
const ask = document.getElementById("ask");
if (ask) {
  const field = (name) => document.getElementById(name);
  const number = (name) => field(name).value === "" ? null : Number(field(name).value);
  const quoted = (text) => "\u201c" + text.replaceAll(" ", "\u2423").replaceAll("\n", "\u23ce") + "\u201d";
  let controller = null;
  const add = ({text, likeliest}) => {
    const piece = document.createElement("span");
    const share = likeliest.find(([other]) => other === text)?.[1] ?? likeliest.at(-1)[1] / 2;
    piece.className = "b" + Math.min(6, Math.floor(-Math.log2(share)));
    piece.textContent = text;
    piece.dataset.expected = quoted(text) + " stands here. Held for likely: "
      + likeliest.map(([other, part]) => quoted(other) + " " + (100 * part).toFixed(1) + " %").join(", ") + ".";
    passage.append(piece);
  };
  ask.onsubmit = async (event) => {
    event.preventDefault();
    controller?.abort();
    controller = new AbortController();
    passage.replaceChildren();
    expected.textContent = "";
    field("stop").disabled = false;
    field("more").disabled = true;
    const wish = {prompt: field("prompt").value};
    for (const name of ["characters", "temperature", "top_k", "top_p", "seed"]) {
      if (number(name) !== null || name.startsWith("top")) wish[name] = number(name);
    }
    try {
      const answer = await fetch("write", {method: "POST", body: JSON.stringify(wish), signal: controller.signal});
      if (!answer.ok) throw new Error((await answer.json()).error);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "", part; !(part = await reader.read()).done;) {
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();
        lines.forEach((line) => add(JSON.parse(line)));
      }
    } catch (error) {
      if (error.name !== "AbortError") expected.textContent = error.message;
    }
    field("stop").disabled = true;
    field("more").disabled = passage.childElementCount === 0;
  };
  field("stop").onclick = () => controller?.abort();
  field("more").onclick = () => {
    field("prompt").value += passage.textContent;
    field("seed").value = (Number(field("seed").value) + 1) % 2 ** 32;
    ask.requestSubmit();
  };
}
"""


def fill(template: str, **values: Any) -> str:
    """One self-contained HTML document, readable without a network and scripts."""
    return (
        _environment()
        .get_template(template)
        .render(
            style=resources.files("bardflow.pages").joinpath("report.css").read_text("utf-8"),
            script=SCRIPT,
            script_hash=_content_hash(SCRIPT),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bardflow.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.gap, wording.grouped, wording.memory, wording.moment, wording.score, wording.setting)
    more = (wording.quoted, wording.share, wording.span, wording.title_language, wording.visible)
    environment.filters |= {function.__name__: function for function in (*words, *more)}
    environment.globals["percent"] = wording.percent
    environment.tests["web_address"] = _web_address
    return environment


def _web_address(text: str) -> bool:
    """Whether the text may be a link; other schemes (`javascript:`, `data:`) are shown as text."""
    return text.startswith(("https://", "http://"))


def _content_hash(script: str) -> str:
    """The script's hash for the content security policy, which allows only this script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
