"""Measure the stages from a source to tokens, and scoring: seconds, MB/s, CPU time and peak memory, beside other ways.

    python benchmarks/ingest.py PATH [--copies 1] [--vocabulary bpe-2048] [--validation 0.02] [--only fetch clean …]

PATH is a text file in UTF-8; with `--copies` the corpus is so many copies of it. Each stage and each reference runs
in a process of its own, on an empty home. The references read the same text:

    copy           copy the file and hash it with sha256
    numpy          look up each character in an array, and write the ids to a file
    encode_batch   `tokenizers`' own encode_batch over the lines of the text, in batches of 1 MB; nothing is written
    datasets.map   `datasets.map` with as many processes as cores, in batches of 1,000 lines, with encode_batch
    score f32      score the validation set in f32 only

`train` is 100 steps of the recipe `small` with characters, so that there is a model to score. The MB/s of `score` are
those of the validation set, the other ones those of the whole text.

CPU time is that of the process alone, on all cores. Peak memory is that of the largest process, with pages of mapped
files that were in memory.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
CORPUS = """
title = "A large text"
language = "en"
licence = "none"
cleaning = ["strip-bom", "crlf", "nfc"]

[source]
path = "texts"

[documents]
cut = "file"

[split]
validation = {validation}
"""
STEPS = ("fetch", "clean", "learn char", "tokenize char", "learn", "tokenize", "baselines", "train", "score")
REFERENCES = ("copy", "numpy", "encode_batch", "datasets.map", "score f32")


def stage(name: str, vocabulary: str) -> None:
    """Run one stage in this process's project; handles of earlier stages are in `handles.json`."""
    from bardflow.flows.training import train, with_steps
    from bardflow.sources.corpora import load_corpus
    from bardflow.storage.handles import Corpus, Handle, Model, Source, TokenShards, Vocabulary
    from bardflow.storage.shards import ShardSpec
    from bardflow.tasks import corpus, evaluation
    from bardflow.tasks import vocabulary as vocabularies
    from bardflow.tasks.planning import plan_training
    from bardflow.tasks.recipes import load_recipe
    from bardflow.tasks.run import Run
    from bardflow.tasks.training import export_model

    project = Path(os.environ["BARDFLOW_PROJECT"])
    made: dict[str, str] = json.loads((project / "handles.json").read_text())
    spec = load_corpus("large", project / "corpora")
    step, _, char = name.partition(" ")
    kind = vocabularies.vocabulary_named("char" if char else vocabulary)
    with Run() as run:
        match step:
            case "fetch":
                handle: Handle = run(corpus.fetch_source, spec)
            case "clean":
                handle = run(corpus.clean_corpus, Source(digest=made["fetch"]), spec)
            case "learn":
                handle = run(vocabularies.learn_vocabulary, Corpus(digest=made["clean"]), kind)
            case "tokenize":
                learned = Vocabulary(digest=made[f"learn {char}".strip()])
                handle = run(vocabularies.tokenize_corpus, Corpus(digest=made["clean"]), learned, ShardSpec())
            case "baselines":
                handle = run(evaluation.measure_baselines, Corpus(digest=made["clean"]))
            case "train":
                characters, shards = Vocabulary(digest=made["learn char"]), TokenShards(digest=made["tokenize char"])
                recipe = with_steps(load_recipe("small").recipe, 100)
                plan = plan_training(characters, recipe.gpt, recipe.training, None)
                legs = train(run, characters, shards, recipe, plan, None)
                handle = run(export_model, legs[-1], characters, Corpus(digest=made["clean"]))
            case _:
                model, spec_of = Model(digest=made["train"]), evaluation.EvaluationSpec(samples=0)
                handle = run(evaluation.evaluate_model, model, Corpus(digest=made["clean"]), spec_of)
    (project / "handles.json").write_text(json.dumps(made | {name: handle.digest}))


def reference(name: str) -> None:
    """Do the same by other means, on the project's texts."""
    from tokenizers import Tokenizer

    project = Path(os.environ["BARDFLOW_PROJECT"])
    files = sorted((project / "texts").iterdir())
    made = json.loads((project / "handles.json").read_text())

    def tokenizer() -> Tokenizer:
        return Tokenizer.from_file(str(project / "home" / "objects" / "vocabulary" / made["learn"] / "tokenizer.json"))

    match name:
        case "copy":
            for file in files:
                shutil.copyfile(file, project / "copy")
                with (project / "copy").open("rb") as copied:
                    hashlib.file_digest(copied, "sha256")
        case "numpy":
            table = np.arange(0x110000, dtype=np.uint32).astype(np.uint16)
            with (project / "copy").open("wb") as out:
                for text in blocks(files):
                    out.write(table[np.frombuffer("".join(text).encode("utf-32-le"), "<u4")].tobytes())
        case "encode_batch":
            own = tokenizer()
            for lines in blocks(files):
                own.encode_batch(lines, add_special_tokens=False)
        case "score f32":
            score_in_f32(project, made)
        case _:
            from datasets import load_dataset

            own = tokenizer()
            rows = load_dataset("text", data_files=[str(file) for file in files], cache_dir=str(project / "cache"))
            rows.map(
                lambda batch: {"ids": [e.ids for e in own.encode_batch(batch["text"], add_special_tokens=False)]},
                batched=True, num_proc=os.cpu_count(), remove_columns=["text"],
            )  # fmt: skip


def score_in_f32(project: Path, made: dict[str, str]) -> None:
    """Score the validation set with nothing in bf16."""
    from bardflow.model.machine import device
    from bardflow.model.scoring import charges_both_ways
    from bardflow.model.training import load_model
    from bardflow.model.vocabulary import TOKENIZER_FILE, encode, load
    from bardflow.storage.documents import read_text

    model, text = (
        project / "home" / "objects" / kind / made[step] for kind, step in (("model", "train"), ("corpus", "clean"))
    )
    ids = np.concatenate(list(encode(load(model / TOKENIZER_FILE), read_text(text, "validation"))))
    charges_both_ways(load_model(model), ids, before=ids[:1], device=device.choose("f32"))


def blocks(files: list[Path]) -> Iterator[list[str]]:
    """Yield the lines of the files, about 1 MB at a time."""
    for file in files:
        with file.open(encoding="utf-8", newline="\n") as text:
            while lines := text.readlines(1 << 20):
                yield lines


def measured(name: str, environment: dict[str, str], vocabulary: str) -> tuple[float, float, float]:
    """Run a stage or a reference in a new process; return its seconds, its CPU seconds and its peak memory in bytes.

    The seconds are those of the work itself, without the imports.
    """
    command = [sys.executable, __file__, "--run", name, "--vocabulary", vocabulary]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    seconds, cpu_seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu_seconds, peak


def run(name: str, vocabulary: str) -> None:
    """Run a stage in a flow, or a reference, in this process, and print its seconds and peak memory."""
    from bardflow.home import prefect_environment

    os.environ |= prefect_environment()
    import datasets  # noqa: F401
    import tokenizers  # noqa: F401
    from prefect import flow

    from bardflow.commands.up import running_flows
    from bardflow.tasks import corpus, evaluation  # noqa: F401
    from bardflow.tasks import vocabulary as vocabularies  # noqa: F401

    if name in REFERENCES:
        seconds = timed(lambda: reference(name))
    else:
        with running_flows():
            seconds = flow(lambda: timed(lambda: stage(name, vocabulary)), name="stage")()
    # A stage's only child is Prefect's server.
    who = [resource.RUSAGE_SELF] + ([resource.RUSAGE_CHILDREN] if name in REFERENCES else [])
    peak = max(resource.getrusage(one).ru_maxrss for one in who) * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps([*seconds, peak]))


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that some work takes, and the seconds of CPU time of this process."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def validation_megabytes(project: Path) -> float:
    """Return the size of the validation set."""
    digest = json.loads((project / "handles.json").read_text())["clean"]
    manifest = json.loads((project / "home" / "objects" / "corpus" / digest / "manifest.json").read_text())
    return float(manifest["facts"]["survey"]["validation_bytes"]) / 1e6


def main() -> None:
    """Print a row for each stage and reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--vocabulary", default="bpe-2048")
    parser.add_argument("--validation", type=float, default=0.02)
    parser.add_argument("--only", nargs="+", choices=[*STEPS, *REFERENCES], default=[*STEPS, *REFERENCES])
    parser.add_argument("--folder", type=Path, help="where the project is made [a temporary folder]")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one stage, in this process
    given = parser.parse_args()
    if given.run:
        run(given.run, given.vocabulary)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        project = Path(folder)
        for name in ("texts", "corpora"):
            (project / name).mkdir()
        for number in range(given.copies):
            (project / "texts" / f"{number:04}.txt").hardlink_to(given.path.resolve())
        (project / "corpora" / "large.toml").write_text(CORPUS.format(validation=given.validation))
        shutil.copy(CHECKOUT / "prefect.yaml", project)
        (project / "handles.json").write_text("{}")
        environment = os.environ | {"BARDFLOW_PROJECT": folder, "BARDFLOW_HOME": f"{folder}/home"}
        environment |= {"PREFECT_LOGGING_TO_API_ENABLED": "false", "HF_HUB_OFFLINE": "1"}
        megabytes = given.copies * given.path.stat().st_size / 1e6
        print(f"{megabytes:,.0f} MB\n{'stage':<16}{'seconds':>9}{'MB/s':>9}{'CPU s':>9}{'peak MB':>9}")
        for name in given.only:
            seconds, cpu, peak = measured(name, environment, given.vocabulary)
            size = validation_megabytes(project) if name.startswith("score") else megabytes
            print(f"{name:<16}{seconds:>9.1f}{size / seconds:>9.3g}{cpu:>9.1f}{peak / 1e6:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
