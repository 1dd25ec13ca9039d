"""The command `bard`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bardflow.commands.artifact_commands import artifacts
from bardflow.commands.console import LOOPBACK, AsJson, prepare_prefect, print_json, tell
from bardflow.commands.corpus_commands import corpora
from bardflow.commands.model_commands import absolute, models
from bardflow.commands.notify_commands import notifications
from bardflow.commands.recipe_commands import recipes
from bardflow.commands.remote_commands import remotes
from bardflow.errors import BardError, disk_error
from bardflow.files import parse_json
from bardflow.home import home, project_folder, set_up_computing

if TYPE_CHECKING:
    from bardflow.outcome import Outcome

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train small GPTs on any text, and work with what was trained.",
)

Fields = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A name from `bard recipe list`.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="Most memory that training may use: 800MB, 2GiB, or free for what is free. [BARDFLOW_MEMORY_LIMIT]",
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        metavar="NUMBER",
        help="Processes that share the windows of each step, in the cluster of BARDFLOW_CLUSTER or here; needs "
        "the extra `cluster`. [BARDFLOW_WORKERS]",
    ),
]

DEFAULT_CORPUS = "tiny-shakespeare"
FALLBACK_CORPUS = "synthetic"


def main() -> None:
    """Run a command. For an error that the user can correct, print only its message."""
    set_up_computing()
    try:
        app()
    except Exception as error:
        known = error if isinstance(error, BardError) else disk_error(error, home())
        if known is None:
            raise
        print(f"bard: {known}", file=sys.stderr)
        sys.exit(1)


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from importlib.metadata import version

        print(f"bardflow {version('bardflow')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `bard` itself."""


@app.command()
def train(
    corpus: Annotated[
        str | None, typer.Argument(help=f"A name from `bard corpus list`. [default: {DEFAULT_CORPUS}]")
    ] = None,
    recipe: RecipeOption = "small",
    set_: Fields = [],  # noqa: B006
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Begin from a model: NAME/champion, a folder (./…) or hub:OWNER/NAME."),
    ] = None,
    memory_limit: MemoryLimit = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Train a GPT on a corpus, evaluate it and write a report."""
    prepare_prefect()
    from bardflow.sources.corpora import load_corpus
    from bardflow.sources.download import FetchError
    from bardflow.tasks.receipts import answer

    load_corpus(corpus or DEFAULT_CORPUS, project_folder() / "corpora")
    given = dict(assignment(text) for text in set_)
    if base is None and memory_limit is None and workers is None:
        known = answer(corpus or DEFAULT_CORPUS, recipe, given)
        if known is not None:
            print(known.model_dump_json(indent=2) if as_json else summary(known))
            return
    from bardflow.commands.up import running_flows

    def checked() -> tuple[str, dict[str, Any]]:
        """Check the recipe, its base and the limits, and return the recipe's name and the overrides."""
        from bardflow.engine.cluster import require_ray
        from bardflow.flows import train_gpt  # noqa: F401
        from bardflow.pages import lineage_drawing, loss_chart  # noqa: F401, because matplotlib takes 0.6 s to import
        from bardflow.tasks.base_model import shape_of
        from bardflow.tasks.cluster import checked_workers
        from bardflow.tasks.planning import checked_limit
        from bardflow.tasks.recipes import overrides_from
        from bardflow.tasks.recipes import recipe as recipe_named

        overrides = overrides_from(given if base is None else {**given, "base_model": absolute(base)})
        chosen = recipe_named(recipe, overrides)
        if chosen.base.model is not None:
            shape_of(chosen.base, chosen.gpt)
        checked_limit(memory_limit, chosen.training)
        if checked_workers(workers, chosen.training) > 1:
            require_ray()
        return chosen.name, overrides

    unreachable: FetchError | None = None
    with running_flows(checked) as (name, overrides):
        from bardflow.flows.train_gpt import train_gpt

        try:
            outcome = train_gpt(corpus or DEFAULT_CORPUS, name, overrides, memory_limit, workers)
        except FetchError as error:
            if corpus is not None:
                raise
            unreachable = error
            tell(f"{error}\n\nNo corpus was named, so the built-in one is used, {FALLBACK_CORPUS}.\n")
            outcome = train_gpt(FALLBACK_CORPUS, name, overrides, memory_limit, workers)
    print(outcome.model_dump_json(indent=2) if as_json else summary(outcome))
    if unreachable is not None:
        tell(f"This was the {FALLBACK_CORPUS} corpus, because {DEFAULT_CORPUS} could not be reached:\n{unreachable}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder; it is made where it is missing.")],
) -> None:
    """Create a project: a folder with corpora, recipes, schedules and settings of your own."""
    from bardflow.commands.project import create_project

    made = create_project(folder.expanduser().resolve())
    print(f"Created a project in {folder}: {', '.join(made)}\n\n  cd {folder}\n  bard train\n  bard up")


@app.command()
def plan(
    corpus: Annotated[str, typer.Argument(help="A name from `bard corpus list`.")] = DEFAULT_CORPUS,
    recipe: RecipeOption = "small",
    set_: Fields = [],  # noqa: B006
    memory_limit: MemoryLimit = None,
    price: Annotated[
        list[str],
        typer.Option(metavar="CARD=DOLLARS", help="What an hour of a card of model/planning/gpus.toml costs you."),
    ] = [],  # noqa: B006
    probe_seconds: Annotated[
        float, typer.Option(min=0, help="How long to try steps here, about; 0: not at all.")
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Estimate what a training run takes: memory, time, disk, and the price on rented GPUs."""
    prepare_prefect()
    from bardflow.commands.planning import foresee_run, table
    from bardflow.tasks.recipes import overrides_from
    from bardflow.tasks.recipes import recipe as recipe_named

    chosen = recipe_named(recipe, overrides_from(dict(assignment(text) for text in set_)))
    foreseen = foresee_run(corpus, chosen, memory_limit, dict(priced(text) for text in price), probe_seconds)
    print(foreseen.model_dump_json(indent=2) if as_json else table(foreseen, chosen))


@app.command()
def up(
    port: Annotated[int, typer.Option(help="The port where the server listens.")] = 4200,
    host: Annotated[
        str, typer.Option(help="The address where it listens; others than 127.0.0.1 need a password.")
    ] = LOOPBACK,
) -> None:
    """Start the Prefect server with its UI, a worker and all deployments; Ctrl-C stops them."""
    from bardflow.commands.up import up as bring_up

    bring_up(port, host)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the server, the worker, next and last runs, disk use and champions."""
    from bardflow.commands.status import gather, text_of

    found = gather()
    print(found.model_dump_json(indent=2) if as_json else text_of(found))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the set-up: versions, home, disk, clock, corpora, recipes, server, settings. Exit status 1 on errors."""
    from bardflow.commands.doctor import examine, text_of

    checks = examine()
    print_json([check.model_dump() for check in checks]) if as_json else print(text_of(checks))
    if any(check.level == "error" for check in checks):
        raise typer.Exit(1)


app.add_typer(corpora, name="corpus")
app.add_typer(recipes, name="recipe")
app.add_typer(notifications, name="notify")
app.add_typer(artifacts)
app.add_typer(remotes)
app.add_typer(models)


def assignment(text: str) -> tuple[str, Any]:
    """Parse `name=value`. The value is read as JSON if it is valid JSON, else as text.

    Raises:
        BardError: the text has no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise BardError(f"--set {text} has no value; write --set FIELD=VALUE, such as --set learning_rate=0.001")
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value


def priced(text: str) -> tuple[str, float]:
    """Parse `CARD=DOLLARS`.

    Raises:
        BardError: the text has another form.
    """
    name, equals, dollars = text.rpartition("=")
    try:
        return name, float(dollars if equals else "")
    except ValueError as error:
        raise BardError(f"--price {text} has no price; write --price CARD=DOLLARS, such as --price L4=0.71") from error


def summary(outcome: "Outcome") -> str:
    """Summarise the result of a training run in a few lines."""
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


if __name__ == "__main__":
    main()
