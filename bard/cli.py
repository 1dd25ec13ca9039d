"""`bard`: the commands of everyday life, each a few lines over the flows and the store."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bard.errors import BardError
from bard.home import home, prefect_environment, project_folder

if TYPE_CHECKING:
    from pydantic import ValidationError

    from flows.outcome import Outcome
    from storage.handles import Handle, Report

# Everything heavier than the command line itself is imported inside the command that needs it: `bard --help` and
# `bard path` answer in a blink, and Prefect reads its settings when it is imported.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
corpora = typer.Typer(no_args_is_help=True, help="The corpora, each a small TOML file in corpora/.")
app.add_typer(corpora, name="corpus")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="A name such as three-kingdoms/champion, or a digest's start.")]

Fields = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="small, sprint, best, classic, lecture, bpe or tiny.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES", help="What training may take: 800MB, 2GiB, or free for what is free. [BARDFLOW_MEMORY_LIMIT]"
    ),
]

LOOPBACK = "127.0.0.1"
DEFAULT_CORPUS = "tiny-shakespeare"
FALLBACK_CORPUS = "synthetic"


def main() -> None:
    """Run a command; a mistake that the user can mend ends it with its message alone."""
    try:
        app()
    except BardError as error:
        print(f"bard: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def train(
    corpus: Annotated[
        str | None, typer.Argument(help=f"A name from `bard corpus list`. [default: {DEFAULT_CORPUS}]")
    ] = None,
    recipe: RecipeOption = "small",
    set_: Fields = [],  # noqa: B006
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Train a GPT: corpus, vocabulary, shards, GPT, evaluation, report, champion."""
    prepare_prefect()
    from sources.download import FetchError
    from sources.spec import load_corpus
    from tasks.planning import checked_limit
    from tasks.recipes import overrides_from
    from tasks.recipes import recipe as recipe_named

    # A wrong word is refused here, before a server is started for it.
    overrides = overrides_from(dict(assignment(text) for text in set_))
    chosen = recipe_named(recipe, overrides)
    load_corpus(corpus or DEFAULT_CORPUS, project_folder() / "corpora")
    checked_limit(memory_limit, chosen.training)
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from bard.up import server
    from flows.train_gpt import train_gpt

    unreachable: FetchError | None = None
    with server() as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            outcome = train_gpt(corpus or DEFAULT_CORPUS, chosen.name, overrides, memory_limit)
        except FetchError as error:
            if corpus is not None:
                raise
            unreachable = error
            tell(f"{error}\n\nNo corpus was named, so this goes on with the built-in one, {FALLBACK_CORPUS}.\n")
            outcome = train_gpt(FALLBACK_CORPUS, chosen.name, overrides, memory_limit)
        finally:
            # The last log lines and states are still on their way: let them arrive before the server goes.
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=5)
    print(outcome.model_dump_json(indent=2) if as_json else summary(outcome))
    if unreachable is not None:
        tell(f"This was the {FALLBACK_CORPUS} corpus, because {DEFAULT_CORPUS} could not be reached:\n{unreachable}")


@app.command()
def plan(
    corpus: Annotated[str, typer.Argument(help="A name from `bard corpus list`.")] = DEFAULT_CORPUS,
    recipe: RecipeOption = "small",
    set_: Fields = [],  # noqa: B006
    memory_limit: MemoryLimit = None,
    price: Annotated[
        list[str], typer.Option(metavar="CARD=DOLLARS", help="What an hour of a card of model/gpus.toml costs you.")
    ] = [],  # noqa: B006
    probe_seconds: Annotated[
        float, typer.Option(min=0, help="How long to try steps here, about; 0: not at all.")
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """What a training will take: parameters, FLOPs, memory by part, time, disk, and the same on rented cards."""
    prepare_prefect()
    from bard.planning import foresee_run, table
    from tasks.recipes import overrides_from
    from tasks.recipes import recipe as recipe_named

    chosen = recipe_named(recipe, overrides_from(dict(assignment(text) for text in set_)))
    foreseen = foresee_run(corpus, chosen, memory_limit, dict(priced(text) for text in price), probe_seconds)
    print(foreseen.model_dump_json(indent=2) if as_json else table(foreseen, chosen))


@corpora.command("list")
def list_corpora(as_json: AsJson = False) -> None:
    """What can be trained on."""
    from sources.spec import corpus_names, load_corpus

    folder = project_folder() / "corpora"
    specs = [load_corpus(name, folder) for name in corpus_names(folder)]
    if as_json:
        print_json([spec.model_dump(mode="json") for spec in specs])
    else:
        width = max((len(spec.name) for spec in specs), default=0)
        for spec in specs:
            print(f"{spec.name:<{width}}  {spec.language:<8} {spec.title} ({spec.licence})")


@corpora.command("add")
def add_corpus(
    name: Annotated[str, typer.Argument(help="What to call it: a-z, 0-9 and -.")],
    source: Annotated[
        str,
        typer.Option("--from", metavar="ADDRESS-OR-PATH", help="http(s) address, file, folder, glob, or dataset:NAME."),
    ],
    title: Annotated[str | None, typer.Option(help="[default: the name]")] = None,
    language: Annotated[str, typer.Option(help="A BCP 47 tag such as en or zh-Hant.")] = "und",
    licence: Annotated[str, typer.Option(help="Under which licence the text stands.")] = "unknown",
    clean: Annotated[list[str], typer.Option(help="A cleaning step, to be repeated.")] = [],  # noqa: B006
    cut: Annotated[str | None, typer.Option(help="whole, file, heading or row. [default: by the source]")] = None,
    heading: Annotated[str | None, typer.Option(help="The regular expression of --cut heading.")] = None,
    pin: Annotated[bool, typer.Option(help="Pin the sha256 of what is there now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a text and write corpora/NAME.toml for it."""
    from pydantic import ValidationError

    from sources.adding import look, source_at
    from sources.spec import CorpusError, CorpusSpec, DocumentsSpec, explained, require_new, write_corpus

    project = project_folder()
    require_new(name, project / "corpora")
    found_at = source_at(source, project)
    by_source = {"dataset": "row"}.get(next(iter(found_at.model_dump())), "whole")
    try:
        spec = CorpusSpec(
            name=name,
            title=title or name.replace("-", " ").capitalize(),
            language=language,
            licence=licence,
            source=found_at,
            cleaning=tuple(clean),
            documents=DocumentsSpec(cut=cut or ("heading" if heading else by_source), heading=heading),  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise CorpusError(explained(Path(f"{name}.toml"), error)) from error
    mirror = os.environ.get("CORPORA_MIRROR") or None
    added = look(spec, project=project, downloads=home() / "downloads", mirror=mirror, pin=pin)
    path = write_corpus(added.spec, project / "corpora")
    if as_json:
        print_json(
            {
                "corpus": added.spec.model_dump(mode="json"),
                "fetched": added.fetched.model_dump(mode="json"),
                "survey": added.survey.model_dump(mode="json"),
                "file": str(path),
            }
        )
        return
    survey, files = added.survey, added.fetched.files
    print(f"address      {added.fetched.address}")
    if len(files) == 1:
        print(f"sha256       {files[0].sha256}{' (pinned)' if pin else ' (not pinned: the source may change)'}")
    print(f"size         {sum(f.bytes for f in files):,} bytes in {len(files)} file{'s' * (len(files) > 1)}, UTF-8")
    print(f"characters   {survey.characters:,}, {survey.distinct:,} distinct")
    print(f"documents    {survey.documents:,}")
    print(f"split        {survey.train_characters:,} to train on, {survey.validation_characters:,} to validate")
    print(f"vocabulary   {survey.suggestion.vocabulary}: {survey.suggestion.reason}")
    for warning in survey.warnings:
        print(f"warning      {warning}")
    print(f"wrote        {path}")
    print(f"train on it  make train CORPUS={name}   or   prefect deployment run train-gpt -p corpus={name}")


@app.command()
def path(ref: Ref) -> None:
    """The folder where an artifact lies."""
    store, handle = found(ref)
    print(store.folder(handle))


@app.command()
def show(ref: Ref, as_json: AsJson = False) -> None:
    """What an artifact is: its facts and files, and the history of its name."""
    from storage.refs import Refs

    store, handle = found(ref)
    manifest, history = store.manifest(handle), Refs(home()).history(ref) if "/" in ref else []
    if as_json:
        print_json(
            {
                "kind": type(handle).__name__,
                "digest": handle.digest,
                "folder": str(store.folder(handle)),
                "facts": manifest.facts,
                "files": {name: file.model_dump() for name, file in manifest.files.items()},
                "history": [entry.model_dump(mode="json") for entry in history],
            }
        )
        return
    print(f"{type(handle).__name__} {handle.digest}\n{store.folder(handle)}")
    print_table("facts", manifest.facts)
    print_table("files", {name: f"{file.bytes:,} bytes" for name, file in manifest.files.items()})
    if history:
        print("history")
        for entry in history:
            print(f"  {entry.number:>3}  {entry.at[:16]}  {entry.handle}  {entry.by}: {entry.why}")


@app.command()
def explain(ref: Ref, as_json: AsJson = False) -> None:
    """Where an artifact comes from, back to the address and sha256 of its source."""
    from storage.handles import Source
    from storage.lineage import lineage, source_address

    store, handle = found(ref)
    ancestors = lineage(store, handle)
    if as_json:
        print_json(
            [
                {
                    "kind": type(a.handle).__name__,
                    "digest": a.handle.digest,
                    "files": {name: file.model_dump() for name, file in a.manifest.files.items()},
                    "origin": a.origin.model_dump(mode="json"),
                }
                for a in ancestors
            ]
        )
        return
    for a in ancestors:
        print(f"{type(a.handle).__name__:<12} {a.handle.short}  {a.origin.at[:16]}  {a.origin.task}")
        for name, spelled in a.origin.inputs.items():
            print(f"{'':<12} from {name} {spelled.partition('/')[2][:8]}")
        if isinstance(a.handle, Source):
            declared, came_from = source_address(a.origin), a.origin.measured["address"]
            print(f"{'':<12} from {declared}{f', by way of {came_from}' if came_from != declared else ''}")
            for name, file in a.manifest.files.items():
                print(f"{'':<12} {name}: {file.bytes:,} bytes, sha256 {file.sha256}")


@app.command()
def rollback(
    corpus: Annotated[str, typer.Argument(help="The corpus whose champion goes back.")],
    to: Annotated[
        str | None, typer.Option(help="A number or digest from `bard show NAME/champion`. [default: the one before]")
    ] = None,
    why: Annotated[str | None, typer.Option(help="The reason, for the history.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put the champion before this one back, or one of the history; a training under way is not disturbed."""
    prepare_prefect()
    from getpass import getuser

    from tasks.champion import rollback as roll_back

    before, now = roll_back(corpus.removesuffix("/champion"), to=to, by=f"rollback ({getuser()})", why=why)
    if as_json:
        print_json({"before": before.model_dump(mode="json"), "now": now.model_dump(mode="json")})
        return
    print(f"{corpus.removesuffix('/champion')}/champion was {before.handle}, is {now.handle}")
    print(f"its {now.number} moves: bard show {corpus.removesuffix('/champion')}/champion")


@app.command()
def sample(
    ref: Ref,
    prompt: Annotated[str | None, typer.Option(help="What the text begins with. [default: a new line]")] = None,
    characters: Annotated[int, typer.Option(min=1)] = 500,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0: from all.")] = 200,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the fewest likeliest that have this share. [default: from all]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 1337,
    count: Annotated[int, typer.Option(min=1, help="Texts, drawn together; the first is the one drawn alone.")] = 1,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes. [default: one text on a terminal]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a model write."""
    from time import perf_counter

    from pydantic import ValidationError

    from model import device
    from model.folder import load_model
    from model.sampling import SamplingSpec, write
    from model.vocabulary import TOKENIZER_FILE, load
    from storage.handles import Model
    from tasks.evaluation import opening

    store, handle = found(ref)
    if not isinstance(handle, Model):
        raise BardError(
            f"{ref} is a {type(handle).__name__}, but only a Model can write; give one, such as NAME/champion"
        )
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

    texts, tokens, started = [""] * count, 0, perf_counter()
    writing = write(gpt, tokenizer, begin, characters, spec, place, rows=count)
    if as_it_comes and not as_json:
        print(begin, end="", flush=True)
    for row, text in writing:
        texts[row] += text
        tokens += 1
        if as_it_comes and text:
            said = json.dumps({"row": row, "text": text}, ensure_ascii=False) + "\n" if as_json else text
            print(said, end="", flush=True)
    seconds = perf_counter() - started

    speed = {"tokens": tokens, "seconds": round(seconds, 6), "tokens_per_second": round(tokens / seconds, 1)}
    whole = {"model": handle.digest, "prompt": begin, "text": texts[0], "texts": texts, **spec.model_dump(), **speed}
    if as_json:
        print(json.dumps(whole, ensure_ascii=False, indent=None if as_it_comes else 2))
        return
    print("" if as_it_comes else "\n---\n".join(begin + text for text in texts))
    tell(f"{tokens:,} tokens in {seconds:.2f} s: {tokens / seconds:,.0f} tokens per second")


@app.command()
def report(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="NAME/champion, NAME/RECIPE or a digest. [default: the index]")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the index and all reports until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Where --serve listens.")] = 4201,
    host: Annotated[str, typer.Option(help="The address where --serve listens; it asks for no password.")] = LOOPBACK,
) -> None:
    """Where a report lies; without REF, the index of all of them, made anew."""
    prepare_prefect()
    if serve:
        from bard.processes import reachable, require_free
        from bard.web import reports_app
        from bard.web import serve as serve_app

        require_free(host, port)
        print(f"reports: http://{reachable(host)}:{port} (Ctrl-C stops it)", flush=True)
        serve_app(reports_app(), host, port)
        return
    from tasks.index import write_index
    from tasks.reporting import html_of

    page = write_index() if ref is None else html_of(report_of(ref))
    print(page)
    if open_:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise BardError(f"no browser was found to open {page}")


@app.command()
def metrics(
    ref: Ref,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write them as a TensorBoard run there instead.")
    ] = None,
) -> None:
    """A run's loss curve as JSON lines: step, seconds, losses in nats per token, learning rate."""
    prepare_prefect()
    from tasks.reporting import METRICS, page_of, write_tensorboard

    handle = report_of(ref)
    if tensorboard is not None:
        print(write_tensorboard(page_of(handle), tensorboard.expanduser()))
        return
    store, _ = found(handle.digest)
    print((store.folder(handle) / METRICS).read_text(encoding="utf-8"), end="")


@app.command()
def export(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="Where to: a new or empty folder.")],
    check: Annotated[bool, typer.Option("--check", help="Open it with transformers and compare.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Give it to the Hugging Face Hub too. [default: no]")
    ] = None,
) -> None:
    """A model as a folder that transformers opens, with a card that has its scores."""
    prepare_prefect()
    from storage.handles import Model
    from tasks import exporting

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


@app.command()
def serve(
    ref: Ref = "tiny-shakespeare/champion",
    port: Annotated[int, typer.Option(help="The port where the page is.")] = 4300,
    host: Annotated[str, typer.Option(help="The address where it listens. It asks for no password.")] = LOOPBACK,
) -> None:
    """A page to write with a model, which shows what it held for likely at each place."""
    prepare_prefect()
    from bard.processes import reachable, require_free
    from bard.web import serve as serve_app
    from bard.web import writing_app
    from storage.handles import Model

    _, handle = found(ref)
    if not isinstance(handle, Model):
        raise BardError(f"{ref} is a {type(handle).__name__}, but only a Model can write; give NAME/champion")
    require_free(host, port)
    app = writing_app(ref, handle)
    print(f"{ref}: http://{reachable(host)}:{port} (Ctrl-C stops it)", flush=True)
    serve_app(app, host, port)


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete artifacts that no name leads to; waits for trainings under way."""
    from contextlib import ExitStack

    from sources.spec import corpus_names
    from storage.refs import Refs
    from storage.store import Store
    from storage.sweep import sweep as sweep_store
    from tasks.turns import turn

    with ExitStack() as turns:
        for name in corpus_names(project_folder() / "corpora"):
            turns.enter_context(turn(name))
        swept = sweep_store(Store(home()), Refs(home()), dry_run=dry_run)
    if as_json:
        print_json({"objects": [str(handle) for handle in swept.objects], "bytes": swept.bytes, "dry_run": dry_run})
        return
    for handle in swept.objects:
        print(handle)
    done = "would be deleted" if dry_run else "deleted"
    print(f"{len(swept.objects)} artifacts, {swept.bytes:,} bytes, and {len(swept.drafts)} unfinished ones {done}")


@app.command()
def up(
    port: Annotated[int, typer.Option(help="The port where the server listens.")] = 4200,
    host: Annotated[str, typer.Option(help="The address where it listens. It asks for no password.")] = LOOPBACK,
) -> None:
    """Server with UI, work pool, worker and all deployments; Ctrl-C stops all of it."""
    from bard.up import up as bring_up

    bring_up(port, host)


def prepare_prefect() -> None:
    """Set this process up before Prefect is imported: Prefect's settings, and who tells the story of a run."""
    os.environ.update(prefect_environment())
    # The story of a run is told by the logger `bardflow`; Prefect's own lines go to its database.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    story = logging.StreamHandler(sys.stderr)
    story.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("bardflow")
    logger.addHandler(story)
    logger.propagate = False


def found(ref: str) -> "tuple[Any, Handle]":
    """The store, and the handle that a REF names."""
    from storage.refs import Refs, resolve
    from storage.store import Store

    store = Store(home())
    return store, resolve(store, Refs(home()), ref)


def report_of(ref: str) -> "Report":
    """The report of a run: that of a champion's or recipe's name, or the one of that digest.

    Raises:
        BardError: there is none.
    """
    from storage.handles import Model, Report
    from storage.refs import Refs

    _, handle = found(ref)
    entry = Refs(home()).head(ref) if "/" in ref else None
    if isinstance(handle, Model) and entry is not None:
        handle = Report(digest=entry.notes["report"])
    if not isinstance(handle, Report):
        raise BardError(
            f"{ref} is a {type(handle).__name__}, which has no page of its own; give NAME/champion, NAME/RECIPE, "
            "the digest of a Report, or nothing for the index"
        )
    return handle


def assignment(text: str) -> tuple[str, Any]:
    """`name=value` read as a name and a JSON value; what is not JSON is text.

    Raises:
        BardError: there is no `=` in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise BardError(f"--set {text} has no value; write --set FIELD=VALUE, such as --set learning_rate=0.001")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def refused(error: "ValidationError") -> str:
    """Each option of a spec that was refused in a line: what was given, what is expected, what it is for."""
    lines = []
    for mistake in error.errors(include_url=False):
        option = "--" + str(mistake["loc"][0]).replace("_", "-")
        lines.append(f"{option} {mistake['input']}: {mistake['msg'].lower()}; see bard sample --help")
    return "\n".join(lines)


def priced(text: str) -> tuple[str, float]:
    """`CARD=DOLLARS` read as a name and a number.

    Raises:
        BardError: it is not of this form.
    """
    name, equals, dollars = text.rpartition("=")
    try:
        return name, float(dollars if equals else "")
    except ValueError as error:
        raise BardError(f"--price {text} has no price; write --price CARD=DOLLARS, such as --price L4=0.71") from error


def summary(outcome: "Outcome") -> str:
    """The end of a training run in a few lines."""
    sample = outcome.sample.strip()[:400].splitlines()
    width = max(15, *(len(name) for name in outcome.baselines))
    lines = [
        f"validation loss   {outcome.nats_per_token:.4f} nats per token",
        f"{'':<17} {outcome.bits_per_character:.4f} bits per character",
        "the same text's size, in bits per character, by other means:",
        *(f"  {name:<{width}} {bits:.4f}" for name, bits in outcome.baselines.items()),
        *(f"{'sample' if i == 0 else '':<17} {line}" for i, line in enumerate(sample)),
        f"report            {outcome.report}",
        f"champion          {'moved' if outcome.champion_moved else 'not moved'}: {outcome.verdict}",
        f"{'trained' if outcome.trained else 'nothing trained':<17} {outcome.why}",
    ]
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Names and values, a line each."""
    print(title)
    for name, value in rows.items():
        print(f"  {name:<24} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}")


def tell(message: str) -> None:
    """A line for the person at the terminal."""
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
