"""The page that generates text with a model and shows the most probable tokens at each position."""

from bardflow.pages.parts import Count, PageModel
from bardflow.pages.template import fill


class WritingPage(PageModel):
    """The values of the page; `prompt` is the initial text."""

    name: str
    model: str
    parameters: Count
    context: Count
    prompt: str


def render(page: WritingPage) -> str:
    """One HTML document that connects only to its own server."""
    return fill("writing.html", page=page)
