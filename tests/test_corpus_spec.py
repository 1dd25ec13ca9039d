"""Laws of a corpus's description: what is legal, what is refused, and with which words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bardflow.sources.cleaning import STEP_NAMES
from bardflow.sources.corpora import corpus_names, load_corpus, write_corpus
from bardflow.sources.spec import (
    CorpusError,
    CorpusSpec,
    DatasetSource,
    DocumentsSpec,
    PathSource,
    Source,
    SplitSpec,
    SyntheticSource,
    UrlSource,
)

CORPORA = Path(__file__).parent.parent / "corpora"

words = st.text("abc é三", min_size=1, max_size=8)
sources = st.one_of(
    st.builds(
        UrlSource,
        url=st.just("https://example.org/a"),
        sha256=st.none() | st.just("0" * 64),
        max_bytes=st.integers(1, 9),
    ),
    st.builds(PathSource, path=words, sha256=st.none() | st.just("f" * 64)),
    st.builds(
        DatasetSource,
        dataset=words,
        config=st.none() | words,
        revision=st.none() | words,
        split=words,
        column=words,
        data_files=st.none() | words | st.lists(words, min_size=1, max_size=3).map(tuple),
        rows=st.none() | st.integers(1, 9),
    ),
    st.builds(SyntheticSource, synthetic=st.integers(1, 10**9), seed=st.integers(0, 9)),
)


@st.composite
def specs(draw: st.DrawFn) -> CorpusSpec:
    source = draw(sources)
    cuts = ["whole", "heading", "row" if isinstance(source, DatasetSource) else "file"]
    cut = draw(st.sampled_from(cuts))
    return CorpusSpec(
        name=draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True)),
        title=draw(words),
        language=draw(st.sampled_from(["en", "zh-Hant", "und", "x-own", "sr-Latn-RS"])),
        licence=draw(words),
        source=source,
        cleaning=tuple(draw(st.permutations(STEP_NAMES)))[: draw(st.integers(0, len(STEP_NAMES)))],
        documents=DocumentsSpec.model_validate({"cut": cut} | ({"heading": "^第.+回"} if cut == "heading" else {})),
        split=SplitSpec(
            by=draw(st.sampled_from(["position", "document"])), validation=draw(st.sampled_from([0.05, 0.1, 0.5]))
        ),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, spec: CorpusSpec) -> None:
    folder = tmp_path_factory.mktemp("corpora")
    path = write_corpus(spec, folder)
    assert path == folder / f"{spec.name}.toml"
    assert load_corpus(spec.name, folder) == spec


def test_a_corpus_is_never_overwritten(tmp_path: Path) -> None:
    spec = CorpusSpec(name="it", title="It", source=SyntheticSource(synthetic=10))
    path = write_corpus(spec, tmp_path)
    before = path.read_bytes()
    with pytest.raises(CorpusError, match="exists already"):
        write_corpus(spec.model_copy(update={"title": "Other"}), tmp_path)
    assert path.read_bytes() == before


def test_every_corpus_of_the_project_is_legal() -> None:
    assert corpus_names(CORPORA) == ["synthetic", "three-kingdoms", "tiny-shakespeare"]
    for name in corpus_names(CORPORA):
        assert load_corpus(name, CORPORA).name == name


def test_the_published_texts_are_pinned_and_tiny_shakespeare_is_left_byte_for_byte() -> None:
    shakespeare = load_corpus("tiny-shakespeare", CORPORA)
    assert isinstance(shakespeare, CorpusSpec) and shakespeare.cleaning == ()
    for name in ("tiny-shakespeare", "three-kingdoms"):
        spec = load_corpus(name, CORPORA)
        assert isinstance(spec, CorpusSpec) and isinstance(source := spec.source, UrlSource)
        assert source.sha256 is not None
        assert re.search(r"/[0-9a-f]{40}/", source.url), "the address is that of one commit"


def test_an_unknown_name_is_answered_with_the_legal_ones_and_the_closest() -> None:
    with pytest.raises(CorpusError) as caught:
        load_corpus("tiny-shakespear", CORPORA)
    for part in (
        "'tiny-shakespear'",
        "did you mean 'tiny-shakespeare'?",
        "synthetic, three-kingdoms, tiny-shakespeare",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["../corpora/synthetic", "", "Synthetic", "a/b", "."])
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(CorpusError, match="There is no corpus"):
        load_corpus(name, CORPORA)


def test_an_empty_folder_says_how_to_add_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"describes no corpus yet.*bard corpus add"):
        load_corpus("it", tmp_path)


def test_files_that_cannot_be_corpora_are_not_listed(tmp_path: Path) -> None:
    for name in ("good.toml", "Bad Name.toml", "note.txt", ".hidden.toml"):
        (tmp_path / name).write_text("")
    assert corpus_names(tmp_path) == ["good"]


GOOD = 'title = "It"\n'
SYNTHETIC = "[source]\nsynthetic = 10\n"


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (GOOD, ["source: is missing"]),
        (SYNTHETIC, ["title: is missing"]),
        (GOOD + "[source]\n", ["source", "exactly one of the keys url, path, dataset, synthetic"]),
        (GOOD + '[source]\nurl = "https://a.b/c"\npath = "d"\n', ["source", "exactly one of the keys"]),
        (GOOD + 'source = "https://a.b/c"\n', ["source", "exactly one of the keys"]),
        (GOOD + '[source]\nurl = "ftp://a.b/c"\n', ["source.url", "ftp://a.b/c"]),
        (GOOD + '[source]\nurl = "https://a.b/c"\nsha256 = "12"\n', ["source.sha256", "'12'"]),
        (
            GOOD + '[source]\nurl = "https://a.b/c"\nsha265 = "12"\n',
            ["source.sha265", "did you mean 'sha256'?", "url, sha256, max_bytes"],
        ),
        (GOOD + "[source]\nsynthetic = 0\n", ["source.synthetic", "greater than 0", "0"]),
        (
            GOOD + SYNTHETIC + "[documents]\ncut = 'chapter'\n",
            ["documents.cut", "'whole', 'file', 'heading' or 'row'", "'chapter'"],
        ),
        (GOOD + SYNTHETIC + "[documents]\ncut = 'heading'\n", ["documents", "needs heading ="]),
        (GOOD + SYNTHETIC + "[documents]\nheading = 'x'\n", ["documents", 'heading belongs to cut = "heading"']),
        (
            GOOD + SYNTHETIC + "[documents]\ncut = 'heading'\nheading = '('\n",
            ["documents.heading", "not a regular expression"],
        ),
        (GOOD + SYNTHETIC + "[documents]\ncut = 'row'\n", ["needs rows", "whole, file, heading"]),
        (
            GOOD + '[source]\ndataset = "x"\n[documents]\ncut = "file"\n',
            ["needs files of plain text", "whole, heading, row"],
        ),
        (GOOD + SYNTHETIC + "[split]\nby = 'chance'\n", ["split.by", "'position' or 'document'", "'chance'"]),
        (GOOD + SYNTHETIC + "[split]\nvalidation = 1\n", ["split.validation", "less than 1", "1"]),
        (GOOD + SYNTHETIC + "[split]\nvalidation = nan\n", ["split.validation", "nan"]),
        (GOOD + SYNTHETIC + "[splitt]\nvalidation = 0.1\n", ["splitt", "did you mean 'split'?"]),
        (
            GOOD + "cleaning = ['guttenberg']\n" + SYNTHETIC,
            ["cleaning", "did you mean 'gutenberg'?", ", ".join(STEP_NAMES)],
        ),
        (GOOD + "cleaning = ['nfc', 'nfc']\n" + SYNTHETIC, ["cleaning", "names a step twice"]),
        (GOOD + "language = 'english language'\n" + SYNTHETIC, ["language", "english language"]),
        (GOOD + "name = 'it'\n" + SYNTHETIC, ["name is taken from the file's own name"]),
        ("title = It\n", ["not valid TOML", "line 1"]),
    ],
)
def test_a_mistake_is_answered_with_file_field_and_what_is_legal(tmp_path: Path, toml: str, told: list[str]) -> None:
    path = tmp_path / "it.toml"
    path.write_text(toml)
    with pytest.raises(CorpusError) as caught:
        load_corpus("it", tmp_path)
    for part in (str(path), *told):
        assert part in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_bytes("title = '三國'".encode("big5"))
    with pytest.raises(CorpusError, match=r"is not UTF-8 \(byte 9\)"):
        load_corpus("it", tmp_path)


def test_a_spec_cannot_be_changed() -> None:
    spec = load_corpus("synthetic", CORPORA)
    assert isinstance(spec, CorpusSpec)
    with pytest.raises(ValidationError, match="frozen"):
        spec.title = "Other"
    with pytest.raises(ValidationError, match="frozen"):
        spec.split.validation = 0.5


def test_a_spec_survives_json_and_keeps_its_kind_of_source() -> None:
    kinds: list[Source] = [
        UrlSource(url="http://a/b"),
        PathSource(path="a"),
        DatasetSource(dataset="a", data_files=("b", "c")),
        SyntheticSource(synthetic=5),
    ]
    for source in kinds:
        spec = CorpusSpec(name="it", title="It", source=source)
        assert CorpusSpec.model_validate_json(spec.model_dump_json()) == spec


def test_reading_a_description_needs_no_heavy_library() -> None:
    probe = "import sys, sources.spec; print(sorted({'datasets', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
