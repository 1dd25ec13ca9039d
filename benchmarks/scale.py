"""10 TB of text and a model of 7 B parameters on paper: the tables of docs/scale.md, from the inputs in scale.toml.

    python benchmarks/scale.py             print the tables
    python benchmarks/scale.py --write     write them into docs/scale.md

Nothing is run at that size. The numbers are inputs (measured rates of this project, prices with their date,
assumptions), the code's own constants and plans (`bardflow.model.planning`), and products of these.
"""

import argparse
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
INPUTS = Path(__file__).with_suffix(".toml")
PAGE = CHECKOUT / "docs" / "scale.md"
TABLE = r"(<!-- table {name} -->\n).*?(<!-- end -->)"
INT32 = 2**31


class Input(NamedTuple):
    """A number that is not computed here, with its unit and where it is from."""

    value: float
    unit: str
    source: str


class Run(NamedTuple):
    """A training run: its name, tokens, optimizer steps, and legs."""

    name: str
    tokens: float
    steps: int
    legs: int


def read_inputs() -> dict[str, Input]:
    """Return the inputs of scale.toml by name."""
    return {name: Input(**fields) for name, fields in tomllib.loads(INPUTS.read_text(encoding="utf-8")).items()}


# Words for numbers


def size(number: float) -> str:
    """Format bytes in decimal units with three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if number < 999.5 or unit == "PB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


def count(number: float) -> str:
    """Format a number: exact up to six digits, and in millions, billions and trillions above."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:,.0f}"


def span(seconds: float) -> str:
    """Format a time."""
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.0f} days"


def dollars(amount: float) -> str:
    """Format a price with three digits, in cents below 10 dollars."""
    return f"${amount:.2f}" if amount < 10 else f"${float(f'{amount:.3g}'):,.0f}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]) + "\n"


# The model and its runs


def shape() -> Any:
    """Return the network: the shape of Llama 7B, 6.7 B parameters."""
    from bardflow.model.networks import GPTSpec

    return GPTSpec(
        architecture="llama", layers=32, heads=32, width=4096, mlp_width=11_008, context=4096, activation="silu"
    )


def training(steps: int, given: dict[str, Input]) -> Any:
    """Return how it is trained: AdamW, batches of `batch_windows` windows."""
    from bardflow.model.training import TrainingSpec

    return TrainingSpec(
        steps=steps,
        batch=int(given["batch_windows"].value),
        optimizer="adamw",
        leg_steps=int(given["leg_steps"].value),
        patience=None,
    )


def runs(given: dict[str, Input]) -> list[Run]:
    """Return the two trainings: 20 tokens for each parameter, and one epoch of the whole corpus."""
    from bardflow.model.planning import parameters

    vocabulary = int(given["vocabulary"].value)
    optimal = given["tokens_per_parameter"].value * parameters(shape(), vocabulary).total
    every = given["text_bytes"].value / given["bytes_per_token"].value
    found = []
    for name, tokens in (("20 tokens a parameter", optimal), ("the whole corpus once", every)):
        steps = round(tokens / (given["batch_windows"].value * shape().context))
        found.append(Run(name, tokens, steps, len(training(steps, given).leg_ends())))
    return found


class Store(NamedTuple):
    """The artifacts of the text: their files and bytes."""

    source: tuple[int, float]
    corpus: tuple[int, float]
    shards: tuple[int, float]


def stored(given: dict[str, Input]) -> Store:
    """Return the files and bytes of the artifacts of the whole corpus."""
    from bardflow.storage.documents import SHARD_BYTES
    from bardflow.storage.shards import ShardSpec

    text = given["text_bytes"].value
    tokens = text / given["bytes_per_token"].value
    width = 2 if given["vocabulary"].value <= 2**16 else 4
    # A row of the corpus has an offset and a document number, a row of the shards the same: 4 bytes each.
    rows = 8 * text / given["bytes_per_document"].value
    return Store(
        source=(round(text / given["source_file_bytes"].value), text),
        corpus=(-int(-(text + rows) // SHARD_BYTES), text + rows),
        shards=(-int(-(width * tokens + rows) // (width * ShardSpec().shard_tokens)), width * tokens + rows),
    )


# Tables


def inputs_table(given: dict[str, Input]) -> str:
    """The inputs."""

    def shown(one: Input) -> str:
        if one.unit == "bytes":
            return size(one.value)
        if one.unit == "bytes/s":
            return f"{size(one.value)}/s"
        if one.unit == "s" and one.value < 1e-3:
            return f"{one.value * 1e6:g} µs"
        number = f"{one.value:,.0f}" if one.value >= 1000 else f"{one.value:g}"
        return f"{number} {one.unit}".strip()

    return table(
        ["input", "value", "from"],
        [[name.replace("_", " "), shown(one), one.source] for name, one in given.items()],
    )


def stages_table(given: dict[str, Input]) -> str:
    """Bytes and hours of each stage of the text."""
    store, text = stored(given), given["text_bytes"].value
    documents = text / given["bytes_per_document"].value
    machines = given["machines"].value
    # From the source, a download and its copy; then each stage reads one artifact and writes the next.
    rows: list[tuple[str, float, float, float]] = [
        ("download, at the rate of the network", text, text, text / given["network"].value),
        ("fetch: copy and hash", text, text, text / given["fetch"].value),
        (
            "clean, split, survey",
            2 * text,
            store.corpus[1],
            text / given["clean"].value + documents * given["clean_seconds_per_document"].value,
        ),
        ("learn a vocabulary, from 10 MB", text, 0, text / given["read_text"].value),
        ("tokenize, 2 cores", store.corpus[1], store.shards[1], text / given["tokenize"].value),
        (
            "check each artifact once more (a second run)",
            sum(part[1] for part in store),
            0,
            hash_seconds(given, sum(part[1] for part in store)),
        ),
    ]
    lines = [
        [name, size(read), size(written) if written else "", span(seconds), span(seconds / machines)]
        for name, read, written, seconds in rows
    ]
    totals = [sum(row[index] for row in rows) for index in (1, 2, 3)]  # type: ignore[misc]
    lines.append(["all", size(totals[0]), size(totals[1]), span(totals[2]), span(totals[2] / machines)])
    return table(["stage", "read", "written", "one machine", f"{machines:.0f} machines"], lines)


def store_table(given: dict[str, Input]) -> str:
    """The artifacts of the text and of the trainings."""
    per_file, fixed = given["manifest_bytes_per_file"].value, given["manifest_bytes"].value
    keep = given["keep_seconds_per_file"].value
    store = stored(given)
    origin = given["origin_bytes"].value
    rows = [
        [name, count(files), size(space), size(fixed + per_file * files), size(origin), span(keep * files)]
        for name, (files, space) in zip(("Source", "Corpus", "TokenShards"), store, strict=True)
    ]
    files, one = given["checkpoint_files"].value, checkpoint_bytes(given)
    rows += [
        [
            f"checkpoints, {run.name}",
            count(files * run.legs),
            size(one * run.legs),
            f"{run.legs} of {size(fixed + per_file * (files - 2))}",
            size(run.legs * origin),
            span(keep * files * run.legs),
        ]
        for run in runs(given)
    ]
    names = given["names"].value
    rows.append(["names, for each training", count(names), size(names * given["entry_bytes"].value), "", "", ""])
    return table(["artifact", "files", "bytes", "manifest", "origin", "to store so many files"], rows)


def hash_seconds(given: dict[str, Input], number: float) -> float:
    """Return the seconds to hash so many bytes."""
    return number / 1e9 * given["hash_seconds_per_gigabyte"].value


def checkpoint_bytes(given: dict[str, Input]) -> float:
    """Return the bytes of one leg's checkpoint: weights and two moments in f32."""
    from bardflow.model.machine import Execution
    from bardflow.model.planning.plan import checkpoint_bytes as bytes_of

    execution = Execution(micro_batch=1, optimizer_state="f32")
    return float(bytes_of(shape(), int(given["vocabulary"].value), training(1000, given), execution))


def storage_table(given: dict[str, Input]) -> str:
    """Object storage: requests and prices."""
    store = stored(given)
    text_files, text_bytes = sum(part[0] for part in store), sum(part[1] for part in store)
    part = given["part_bytes"].value
    rows = []
    for run in runs(given):
        legs = run.legs * checkpoint_bytes(given)
        objects = text_files + given["checkpoint_files"].value * run.legs
        puts = (text_bytes + legs) / part + objects
        gets = stored(given).shards[1] * min(1.0, run.tokens / runs(given)[1].tokens) / part + objects
        month = (text_bytes + legs) / 1e9 * given["storage_month"].value
        rows.append(
            [
                run.name,
                size(text_bytes + legs),
                count(objects),
                f"{count(puts)}, {dollars(puts / 1000 * given['put'].value)}",
                f"{count(gets)}, {dollars(gets / 1000 * given['get'].value)}",
                dollars(month),
                dollars((text_bytes + legs) / 1e9 * given["egress"].value),
            ]
        )
    return table(
        ["training", "stored", "objects", "writes", "reads by one machine", "storage a month", "to another cloud"], rows
    )


def card_hours(given: dict[str, Input], run: Run, card: Any) -> float:
    """Return the hours of one card that a training takes, at the share of its peak that `bard plan` assumes."""
    from bardflow.model.planning import cloud, flops_per_token

    operations = run.tokens * flops_per_token(shape(), int(given["vocabulary"].value))
    return float(operations / (cloud.UTILISATION * card.tflops * 1e12) / 3600)


def training_table(given: dict[str, Input]) -> str:
    """Operations, hours and dollars of each training on each card."""
    from bardflow.model.planning import cloud

    rows = []
    for name, card in cloud.cards({}).items():
        if card.precision != "bf16":
            continue
        line = [name]
        for run in runs(given):
            hours = card_hours(given, run, card)
            line += [
                f"{count(hours)} h",
                span(hours * 3600 / given["cards"].value),
                dollars(hours * card.dollars_per_hour),
            ]
        rows.append(line)
    heads = ["card"]
    for run in runs(given):
        heads += [f"{run.name}: card hours", f"{given['cards'].value:.0f} cards", "price"]
    return table(heads, rows)


def model_table(given: dict[str, Input]) -> str:
    """The model and its two trainings."""
    from bardflow.model.planning import flops_per_token, parameters

    vocabulary = int(given["vocabulary"].value)
    total = parameters(shape(), vocabulary).total
    both = runs(given)
    operations = flops_per_token(shape(), vocabulary)
    windows = [run.tokens / shape().context for run in both]
    every = both[1].tokens
    # An epoch is all windows in one order, which is drawn at once; a chunk is one record batch of the shards.
    from bardflow.storage.shards import BATCH_TOKENS

    order, chunks = every / shape().context, every / BATCH_TOKENS
    checkpoint = checkpoint_bytes(given)
    checkpoints = [run.legs * checkpoint for run in both]
    rows = [
        ["parameters", count(total), count(total)],
        ["tokens", *(count(run.tokens) for run in both)],
        ["text of these tokens", *(size(run.tokens * given["bytes_per_token"].value) for run in both)],
        ["operations", *(f"{run.tokens * operations:.2g}" for run in both)],
        [
            f"steps of {count(given['batch_windows'].value * shape().context)} tokens",
            *(f"{run.steps:,}" for run in both),
        ],
        ["windows", *(count(number) for number in windows)],
        ["legs, a checkpoint each", *(f"{run.legs:,}" for run in both)],
        ["bytes of a checkpoint: weights and two moments in f32", *[size(checkpoint)] * 2],
        ["all checkpoints", *map(size, checkpoints)],
        [
            "to hash them, when an interrupted run resumes",
            *(span(hash_seconds(given, run.legs * checkpoint_bytes(given))) for run in both),
        ],
        ["weights, gradients and two moments in f32, on a card", *[size(16 * total)] * 2],
        ["the least that a card must have, with all economies", *[size(least_memory(given))] * 2],
        ["on each of 8 cards, blocks in shards and computed again", *[size(memory_in_shards(given, 8))] * 2],
        ["order of an epoch, in each process", *[size(8 * order)] * 2],
        ["to draw it", *[span(order * given["order_seconds_per_window"].value)] * 2],
        ["views of the shards, in each process", *[size(chunks * given["chunk_bytes"].value)] * 2],
    ]
    return table(["", *(run.name for run in both)], rows)


def least_memory(given: dict[str, Input]) -> float:
    """Return the bytes on one card that bardflow's most economical execution needs."""
    from bardflow.model.planning.plan import LEAST_LOSS_TOKENS

    return memory(given, micro_batch=1, recompute=True, loss_tokens=LEAST_LOSS_TOKENS, optimizer_state="bf16")


def memory_in_shards(given: dict[str, Input], cards: int) -> float:
    """Return the bytes on each card with blocks in shards and the optimizer state in f32."""
    return memory(given, micro_batch=1, recompute=True, workers=cards, sharded=True)


def memory(given: dict[str, Input], **execution: Any) -> float:
    """Return the planned peak on a card."""
    from bardflow.model.machine import Execution
    from bardflow.model.planning import Machine, cloud, foresee

    machine = Machine(device="cuda", precision="bf16", base=cloud.CONTEXT_BYTES)
    vocabulary = int(given["vocabulary"].value)
    plan = foresee(shape(), vocabulary, training(1000, given), Execution(**execution), machine)
    return float(plan.peak.total)


def prefect_table(given: dict[str, Input]) -> str:
    """What Prefect's server records of each training, on 64 H100s."""
    from bardflow.commands.prefect_api import HEARTBEAT_SECONDS
    from bardflow.model.planning import cloud

    rows = []
    for run in runs(given):
        tasks = given["tasks_beside_legs"].value + run.legs
        seconds = 3600 * card_hours(given, run, cloud.cards({})["H100 80GB"]) / given["cards"].value
        kept = min(seconds, given["event_days"].value * 86400) / HEARTBEAT_SECONDS
        database = tasks * given["database_bytes_per_task"].value + kept * given["event_bytes"].value
        rows.append(
            [
                run.name,
                count(tasks),
                count(tasks * given["events_per_task"].value),
                count(seconds / HEARTBEAT_SECONDS),
                count(kept),
                size(database),
                size(tasks * given["result_bytes"].value),
            ]
        )
    heads = ["task runs", "their events", "heartbeats", "kept at once", "database", "cached results"]
    return table(["training", *heads], rows)


class Limit(NamedTuple):
    """Something that ends or takes too long: the text (bytes) from which it does, and what it is at 10 TB."""

    what: str
    text: float
    here: str


def limits(given: dict[str, Input]) -> list[Limit]:
    """Return the limits, by the size of the text at which they are met."""
    text = given["text_bytes"].value
    memory, day = given["machine_memory"].value, 86400.0
    document, per_token = given["bytes_per_document"].value, given["bytes_per_token"].value
    store = stored(given)
    chunk = given["chunk_bytes"].value / 2**20 / per_token
    order = 8 / (shape().context * per_token)
    home = text + sum(part[1] for part in store)
    duplicate = given["duplicate_bytes_per_document"].value
    clean = 1 / given["clean"].value + given["clean_seconds_per_document"].value / document
    shard_files = store.shards[0]
    return sorted(
        [
            Limit(
                f"duplicates are counted in memory ({size(memory)})",
                memory / duplicate * document,
                f"{size(text / document * duplicate)} of memory",
            ),
            Limit(
                "tokenizing on 2 cores takes more than a day",
                given["tokenize"].value * day,
                span(text / given["tokenize"].value),
            ),
            Limit("cleaning in one process takes more than a day", day / clean, span(text * clean)),
            Limit("the home is on one disk of 30 TB", 30e12 * text / home, f"{size(home)}, with downloads"),
            Limit(
                "a second run hashes all artifacts for more than an hour",
                3600 * text / hash_seconds(given, sum(part[1] for part in store)),
                span(hash_seconds(given, sum(part[1] for part in store))),
            ),
            Limit("document numbers are int32", INT32 * document, f"{count(text / document)} documents"),
            Limit(
                f"a process maps each shard file; Linux allows {given['maps'].value:,.0f}",
                given["maps"].value * text / shard_files,
                f"{shard_files:,} files",
            ),
            Limit(
                f"order and views of an epoch in memory ({size(memory)})",
                memory / (order + chunk),
                size(text * (order + chunk)),
            ),
            Limit(
                "a manifest of 100 MB",
                1e8 / given["manifest_bytes_per_file"].value * given["source_file_bytes"].value,
                size(store.source[0] * given["manifest_bytes_per_file"].value),
            ),
        ],
        key=lambda limit: limit.text,
    )


def limits_table(given: dict[str, Input]) -> str:
    """What is met first as the text grows."""
    rows = [[one.what, size(one.text), one.here] for one in limits(given)]
    return table(["what", "from about", "at 10 TB"], rows)


TABLES: dict[str, Callable[[dict[str, Input]], str]] = {
    "inputs": inputs_table,
    "stages": stages_table,
    "model": model_table,
    "store": store_table,
    "storage": storage_table,
    "training": training_table,
    "prefect": prefect_table,
    "limits": limits_table,
}


def with_tables(page: str, given: dict[str, Input]) -> str:
    """Return the page with all tables as they are now.

    Raises:
        ValueError: the page has no place for a table.
    """
    for name, make in TABLES.items():
        place = re.compile(TABLE.format(name=name), re.DOTALL)
        if not place.search(page):
            raise ValueError(f"{PAGE.name} has no place for the table {name!r}: <!-- table {name} --> … <!-- end -->")
        body = make(given)
        page = place.sub(lambda found, body=body: found[1] + body + found[2], page)
    return page


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description="10 TB and 7 B on paper: the tables of docs/scale.md.")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scale.md")
    options = parser.parse_args()
    given = read_inputs()
    if options.write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), given), encoding="utf-8")
    else:
        for name, make in TABLES.items():
            print(f"## {name}\n\n{make(given)}")


if __name__ == "__main__":
    main()
