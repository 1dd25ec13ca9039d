"""`bard corpus`: list and add corpora."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bardflow.commands.console import AsJson, print_json
from bardflow.home import home, project_folder

if TYPE_CHECKING:
    from bardflow.sources.adding import Added
    from bardflow.sources.duplicates import Duplicates

corpora = typer.Typer(no_args_is_help=True, help="The corpora, each a small TOML file in corpora/.")


@corpora.command("list")
def list_corpora(as_json: AsJson = False) -> None:
    """List the corpora."""
    from bardflow.sources.corpora import corpus_names, load_corpus
    from bardflow.sources.spec import AnyCorpus, CorpusError, CorpusSpec, MixtureSpec

    folder = project_folder() / "corpora"
    found: dict[str, AnyCorpus | CorpusError] = {}
    for name in corpus_names(folder):
        try:
            found[name] = load_corpus(name, folder)
        except CorpusError as error:
            found[name] = error
    if as_json:
        print_json(
            [
                {"name": name, "error": str(spec)} if isinstance(spec, CorpusError) else spec.model_dump(mode="json")
                for name, spec in found.items()
            ]
        )
        return
    width = max(map(len, found), default=0)
    for name, spec in found.items():
        if isinstance(spec, CorpusSpec):
            print(f"{name:<{width}}  {spec.language:<8} {spec.title} ({spec.licence})")
        elif isinstance(spec, MixtureSpec):
            parts = ", ".join(f"{part.corpus} × {part.weight:g}" for part in spec.mixture)
            print(f"{name:<{width}}  {spec.language or '':<8} {spec.title} (mixture of {parts})")
        else:
            print(f"{name:<{width}}  cannot be used: " + f"\n{'':<{width}}  ".join(str(spec).splitlines()))


@corpora.command("add")
def add_corpus(
    name: Annotated[str, typer.Argument(help="What to call it: a-z, 0-9 and -.")],
    source: Annotated[
        str,
        typer.Option("--from", metavar="ADDRESS-OR-PATH", help="http(s) address, file, folder, glob, or dataset:NAME."),
    ],
    title: Annotated[str | None, typer.Option(help="[default: what the text says, or the name]")] = None,
    language: Annotated[
        str | None, typer.Option(help="A BCP 47 tag such as en or zh-Hant. [default: what the text says]")
    ] = None,
    licence: Annotated[str, typer.Option(help="Under which licence the text stands.")] = "unknown",
    encoding: Annotated[str | None, typer.Option(help="Such as utf-8 or gb18030. [default: detected]")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="text, html, markdown, epub, json, jsonl, csv or parquet. [default: by the content]"
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="The column of the text in rows, such as message.content. [default: text, or the longest]"),
    ] = None,
    clean: Annotated[
        list[str],
        typer.Option(help="A cleaning step, to be repeated, or none. [default: all that change the text]"),
    ] = [],  # noqa: B006
    cut: Annotated[
        str | None,
        typer.Option(help="whole, file, heading or row. [default: row for rows, file for several files]"),
    ] = None,
    heading: Annotated[str | None, typer.Option(help="The regular expression of --cut heading.")] = None,
    duplicates: Annotated[
        str | None,
        typer.Option(help="keep or drop documents that repeat another one. [default: drop, if there are some]"),
    ] = None,
    pin: Annotated[bool, typer.Option(help="Pin the sha256 of what is there now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read a text, show what is in it, and write corpora/NAME.toml for it."""
    from pydantic import ValidationError

    from bardflow.sources.adding import PROPOSED, look, source_at
    from bardflow.sources.corpora import explained, require_new, write_corpus
    from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, DocumentsSpec

    project = project_folder()
    require_new(name, project / "corpora")
    given = {
        **{"encoding": encoding, "rows": form == "text", "cleaning": clean, "documents": cut or heading},
        **{"title": title, "language": language, "duplicates": duplicates},
    }
    try:
        found_at = source_at(source, project)
        documents = DocumentsSpec(cut=cut or "heading", heading=heading) if cut or heading else None  # type: ignore[arg-type]
        spec = CorpusSpec(
            name=name,
            title=title or name.replace("-", " ").capitalize(),
            language=language or "und",
            licence=licence,
            source=found_at,
            encoding=encoding or "utf-8",
            cleaning=() if clean == ["none"] else tuple(clean),
            documents=DocumentsSpec(cut="row" if isinstance(found_at, DatasetSource) else "whole"),
        )
        added = look(
            spec,
            project=project,
            downloads=home() / "downloads",
            mirror=os.environ.get("CORPORA_MIRROR") or None,
            pin=pin,
            propose=[field for field in PROPOSED if not given[field]],
            form=form,
            column=column,
            documents=documents,
            duplicates=duplicates,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise CorpusError(explained(Path(f"{name}.toml"), error)) from error
    path = write_corpus(added.spec, project / "corpora")
    if as_json:
        print_json(
            {
                "corpus": added.spec.model_dump(mode="json"),
                "fetched": added.fetched.model_dump(mode="json"),
                "survey": added.survey.model_dump(mode="json"),
                "detected": added.detected and added.detected._asdict(),
                "columns": added.columns,
                "rows": added.rows and asdict(added.rows),
                "cleaned": [step.model_dump() for step in added.cleaned],
                "duplicates": added.duplicates and added.duplicates.model_dump(),
                "file": str(path),
            }
        )
        return
    survey, files = added.survey, added.fetched.files
    print(f"title        {added.spec.title} ({added.spec.language})")
    print(f"address      {added.fetched.address}")
    if len(files) == 1:
        print(f"sha256       {files[0].sha256}{' (pinned)' if pin else ' (not pinned: the source may change)'}")
    print(f"size         {sum(f.bytes for f in files):,} bytes in {len(files)} file{'s' * (len(files) > 1)}")
    print(f"encoding     {encoding_line(added)}")
    if added.spec.format != "text":
        print(f"format       {added.spec.format}")
    if added.columns:
        print(f"rows         {rows_line(added)}")
    if added.rows is not None and added.rows.without_value:
        print(f"left out     {added.rows.without_value:,} of {added.rows.rows:,} rows, which have no value there")
    for step in added.cleaned:
        print(
            f"cleaning     {step.step}: {step.lines_removed:,} lines and {step.characters_removed:,} characters "
            f"removed, {step.characters_added:,} characters added"
        )
    if added.cleaned:
        print(f"before       {added.before!r}\nafter        {added.after!r}")
    print(f"characters   {survey.characters:,}, {survey.distinct:,} distinct")
    cut_by = added.spec.documents
    expression = f", {cut_by.heading}" if cut_by.heading else ""
    print(f"documents    {survey.documents:,} (cut: {cut_by.cut}{expression})")
    if added.duplicates is not None:
        print(f"duplicates   {duplicates_line(added.duplicates)}")
    print(f"split        {survey.train_characters:,} to train on, {survey.validation_characters:,} to validate")
    print(f"vocabulary   {survey.suggestion.vocabulary}: {survey.suggestion.reason}")
    for warning in survey.warnings:
        print(f"warning      {warning}")
    print(f"wrote        {path}")
    print(f"train on it  make train CORPUS={name}   or   prefect deployment run train-gpt -p corpus={name}")


def rows_line(added: "Added") -> str:
    """The format of the rows, the column of the text, and the other columns with text."""
    from bardflow.sources.spec import DatasetSource

    rows, source = added.spec.rows, added.spec.source
    column = source.column if isinstance(source, DatasetSource) else rows.column if rows else ""
    others = [other for other in added.columns if other != column]
    return (
        f"{rows.format if rows else f'dataset ({added.fetched.why})'}, column {column}"
        + (f"; with text also: {', '.join(others[:8])} (--column NAME)" if others else "")
    )  # fmt: skip


def duplicates_line(found: "Duplicates") -> str:
    """The numbers of exact and near duplicates, where they are, what is done with them, and an example."""
    if not found.total:
        return "none"
    across = f", of which {found.across.total:,} in both sets" * bool(found.across.total)
    done = "dropped; to keep them: --duplicates keep" if found.dropped else "kept; to drop them: --duplicates drop"
    line = f"{found.exact:,} exact and {found.total - found.exact:,} near{across} ({done})"
    if found.example is not None:
        kind, blanks = found.example.kind, " " * 13
        line += f"\n{blanks}{kind}: {found.example.first!r}\n{blanks}{'':<{len(kind)}}  {found.example.second!r}"
    return line


def encoding_line(added: "Added") -> str:
    """The encoding of a new corpus, whether it is certain, and a line to check it by."""
    found = added.detected
    if found is None or found.certain:
        return added.spec.encoding
    others = f"; also possible: {', '.join(found.others)}" if found.others else ""
    return f"{found.encoding} (detected{others}; another: --encoding NAME)\n{'':<13}{found.line}"
