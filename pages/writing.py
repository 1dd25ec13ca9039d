"""The page to write with a model: a text, what the model adds to it, and what it held for likely at each place."""

from bardflow.pages.parts import Count, PageModel
from bardflow.pages.template import fill


class WritingPage(PageModel):
    """Whose page it is; `prompt` stands in the field at first."""

    name: str
    model: str
    parameters: Count
    context: Count
    prompt: str


def render(page: WritingPage) -> str:
    """One HTML document; it talks to the server that it came from and to nobody else."""
    return fill("writing.html", page=page)
