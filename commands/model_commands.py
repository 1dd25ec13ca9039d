"""Commands that use models: `sample`, `score`, `compare`, `export`, `import` and `serve`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bardflow.commands.console import LOOPBACK, AsJson, Ref, found, opened, prepare_prefect, print_json, tell
from bardflow.errors import BardError
from bardflow.home import project_folder

if TYPE_CHECKING:
    from pydantic import ValidationError

models = typer.Typer()


@models.command()
def sample(
    ref: Ref,
    prompt: Annotated[str | None, typer.Option(help="What the text begins with. [default: a new line]")] = None,
    characters: Annotated[int | None, typer.Option(min=1, help="Stop after so many. [default: 500]")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many tokens, in place of --characters.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0: always the most probable token.")] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=0, help="Draw from so many of the most probable tokens; 0: from all.")
    ] = 200,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the fewest most probable ones that together have this probability. [default: from all]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 1337,
    count: Annotated[int, typer.Option(min=1, help="Texts, drawn together; the first is the one drawn alone.")] = 1,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes. [default: one text on a terminal]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with a model."""
    from time import perf_counter

    from pydantic import ValidationError

    from bardflow.model.machine import device
    from bardflow.model.sampling import SamplingSpec, opening, write
    from bardflow.model.training import load_model
    from bardflow.model.vocabulary import TOKENIZER_FILE, load
    from bardflow.storage.handles import Model

    store, handle = found(ref)
    if not isinstance(handle, Model):
        raise BardError(
            f"{ref} is a {type(handle).__name__}, but only a Model generates text; give one, such as NAME/champion"
        )
    if tokens is not None and characters is not None:
        raise BardError("--tokens and --characters both say where a text ends; give one of them")
    if prompt == "":
        raise BardError("--prompt is empty, but a text begins with something; leave it out to begin with a new line")
    if stream and count > 1 and not as_json:
        raise BardError(
            f"--stream prints one text as it comes, but --count {count} asks for several at once; leave one of them "
            "out, or add --json, which says of each piece which text's it is"
        )
    try:
        spec = SamplingSpec(temperature=temperature, top_k=top_k or None, top_p=top_p, seed=seed)
    except ValidationError as error:
        raise BardError(refused(error)) from error
    folder, place = store.folder(handle), device.choose("f32")
    gpt, tokenizer = load_model(folder).to(place.name), load(folder / TOKENIZER_FILE)
    begin = prompt or opening(tokenizer)
    as_it_comes = stream if stream is not None else count == 1 and not as_json and sys.stdout.isatty()

    texts, drawn, started = [""] * count, 0, perf_counter()
    if tokens is None and characters is None:
        characters = 500
    writing = write(gpt, tokenizer, begin, characters, spec, place, rows=count, tokens=tokens)
    if as_it_comes and not as_json:
        print(begin, end="", flush=True)
    for row, text in writing:
        texts[row] += text
        drawn += 1
        if as_it_comes and text:
            said = json.dumps({"row": row, "text": text}, ensure_ascii=False) + "\n" if as_json else text
            print(said, end="", flush=True)
    seconds = perf_counter() - started

    speed = {"tokens": drawn, "seconds": round(seconds, 6), "tokens_per_second": round(drawn / seconds, 1)}
    whole = {"model": handle.digest, "prompt": begin, "text": texts[0], "texts": texts, **spec.model_dump(), **speed}
    if as_json:
        print(json.dumps(whole, ensure_ascii=False, indent=None if as_it_comes else 2))
        return
    print("" if as_it_comes else "\n---\n".join(begin + text for text in texts))
    tell(f"{drawn:,} tokens in {seconds:.2f} s: {drawn / seconds:,.0f} tokens per second")


@models.command()
def export(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="Where to: a new or empty folder.")],
    check: Annotated[bool, typer.Option("--check", help="Open it with transformers and compare.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Give it to the Hugging Face Hub too. [default: no]")
    ] = None,
) -> None:
    """Export a model as a folder that transformers can load, with a model card."""
    prepare_prefect()
    from bardflow.storage.handles import Model
    from bardflow.tasks import exporting

    _, handle = found(ref)
    if not isinstance(handle, Model):
        raise BardError(f"{ref} is a {type(handle).__name__}, but only a Model is exported; give NAME/champion")
    folder = folder.expanduser().resolve()
    scores = exporting.export(handle, folder)
    bits = f", {scores.bits_per_character:.4f} bits per character" if scores else ""
    print(f"{handle}{bits}: {folder}")
    if check:
        done = exporting.check(folder, handle)
        print(f"transformers opens it: {done.tokens:,} tokens are the same, logits differ by at most {done.logits:.1e}")
    if push:
        print(f"pushed to {exporting.push(folder, push)}")


@models.command("import")
def import_(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="An exported model, or hub:OWNER/NAME.")],
    name: Annotated[str | None, typer.Option(help="Name it models/NAME. [default: the folder's name]")] = None,
    as_json: AsJson = False,
) -> None:
    """Import a model from a folder, such as one that `bard export` wrote."""
    prepare_prefect()
    from getpass import getuser

    from bardflow.tasks.importing import import_model

    address = folder if folder.startswith("hub:") else str(Path(folder).expanduser().resolve())
    named = name or Path(folder.partition("@")[0]).name.lower().replace("_", "-").replace(".", "-")
    model, entry = import_model(address, named, by=f"import ({getuser()})")
    if as_json:
        print_json({"name": f"models/{named}", "entry": entry.model_dump(mode="json")})
        return
    print(f"models/{named}  {model}\n{entry.why}")


@models.command()
def serve(
    ref: Ref = "tiny-shakespeare/champion",
    port: Annotated[int, typer.Option(help="The port where the page is.")] = 4300,
    host: Annotated[
        str, typer.Option(help="The address where it listens; others than 127.0.0.1 need a password.")
    ] = LOOPBACK,
) -> None:
    """Serve a page to generate text with a model; it shows the most probable next tokens at each position."""
    prepare_prefect()
    from bardflow.commands.processes import reachable, require_free, require_password
    from bardflow.commands.web import serve as serve_app
    from bardflow.commands.web import writing_app
    from bardflow.storage.handles import Model

    _, handle = found(ref)
    if not isinstance(handle, Model):
        raise BardError(f"{ref} is a {type(handle).__name__}, but only a Model generates text; give NAME/champion")
    require_password(host)
    require_free(host, port)
    app = writing_app(ref, handle)
    print(f"{ref}: http://{reachable(host)}:{port} (Ctrl-C stops it)", flush=True)
    serve_app(app, host, port)


On = Annotated[str | None, typer.Option("--on", metavar="CORPUS", help="A name from `bard corpus list`.")]
Context = Annotated[
    int | None, typer.Option(min=2, help="Tokens in a window of a folder's model. [default: its own, at most 1024]")
]
ModelNames = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="NAME/champion, a folder of transformers, or hub:OWNER/NAME.")
]


@models.command()
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder of transformers, or hub:OWNER/NAME.")],
    on: On = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Score a pretrained model on a corpus, beside the corpus's champion and the baselines."""
    corpus = on or "tiny-shakespeare"
    champion = f"{corpus}/champion"
    known = [champion] if opened()[1].head(champion) is not None else []
    side_by_side([model, *known], corpus, context, as_json)


@models.command()
def compare(models: ModelNames, on: On = None, context: Context = None, as_json: AsJson = False) -> None:
    """Compare models on a corpus: bits, samples from equal seeds, and where they differ most."""
    from bardflow.sources.corpora import corpus_names

    first = models[0].partition("/")[0]
    own = first in corpus_names(project_folder() / "corpora")
    side_by_side(models, on or (first if own else "tiny-shakespeare"), context, as_json)


def side_by_side(names: list[str], corpus: str, context: int | None, as_json: bool) -> None:
    """Run the flow `compare-models` and print its answer."""
    prepare_prefect()
    from bardflow.commands.up import running_flows
    from bardflow.sources.corpora import load_corpus

    names = [absolute(name) for name in names]
    load_corpus(corpus, project_folder() / "corpora")

    def located_all() -> None:
        from bardflow.flows import compare_models  # noqa: F401
        from bardflow.tasks.base_model import BaseSpec, located

        for name in names:
            located(BaseSpec(model=name))

    with running_flows(located_all):
        from bardflow.flows.compare_models import compare_models

        report = compare_models(names, corpus, context)
    from bardflow.pages.experiment import ExperimentPage

    page = ExperimentPage.model_validate_json((Path(report).parent / "page.json").read_bytes())
    table, described = page.parts[0].tables
    if as_json:
        columns = (*table.columns, *described.columns)
        rows = [dict(zip(columns, (*a, *b), strict=True)) for a, b in zip(table.rows, described.rows, strict=True)]
        print_json({"corpus": corpus, "answer": page.answer, "models": rows, "report": report})
        return
    # The run has logged the answer in sentences, and the report's path.
    width = max(len(str(row[0])) for row in table.rows)
    for row in table.rows:
        print(f"{row[0]:<{width}}  {row[1]} bits per character  {row[2]}")


def absolute(name: str) -> str:
    """Return a folder's absolute path, and other names of models unchanged."""
    return str(Path(name).expanduser().resolve()) if name.startswith((".", "~")) else name


def refused(error: "ValidationError") -> str:
    """Describe each rejected option in one line: the given value, and what was expected."""
    lines = []
    for mistake in error.errors(include_url=False):
        option = "--" + str(mistake["loc"][0]).replace("_", "-")
        lines.append(f"{option} {mistake['input']}: {mistake['msg'].lower()}; see bard sample --help")
    return "\n".join(lines)
