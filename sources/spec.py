"""The spec of a corpus: its source, and everything that determines its text and its split."""

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bardflow.errors import BardError
from bardflow.identity import AsBefore
from bardflow.sources.addresses import checked_address
from bardflow.sources.cleaning import STEP_NAMES
from bardflow.sources.heading import Heading
from bardflow.toml import closest

CORPUS_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# The store uses these names for reports of experiments, and for imported models.
RESERVED_NAMES = ("experiments", "models")

# Python's codecs that map text to text, or are not used for files.
_NO_TEXT = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined", "oem", "mbcs"})

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# The short form of BCP 47 (RFC 5646, section 2.1): a language subtag and further subtags, or private use.
Language = Annotated[str, StringConstraints(pattern=r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*|x(-[A-Za-z0-9]{1,8})+)$")]


class CorpusError(BardError):
    """A mistake in a corpus file, or a text that cannot be used."""


class _Frozen(BaseModel):
    # Without the input in error messages: an address that is refused may have a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class UrlSource(_Frozen):
    """A file at an http(s) address without a password; without `sha256`, its content may change."""

    url: Annotated[str, AfterValidator(checked_address)]
    sha256: Sha256 | None = None
    max_bytes: int = Field(default=2 * 1024**3, gt=0)


class PathSource(_Frozen):
    """A file, a folder or a glob on this machine; a relative path starts at the project folder."""

    path: str = Field(min_length=1)
    sha256: Sha256 | None = None


class DatasetSource(_Frozen):
    """One text column of a Hugging Face dataset, read as a stream of at most `rows` rows.

    `dataset` is a name on the Hub, a local folder (absolute, or starting with `./` or `../`), or a reader such as
    `json`, `csv`, `parquet` or `text` together with `data_files`.
    """

    dataset: str = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"
    data_files: str | tuple[str, ...] | None = None
    rows: int | None = Field(default=None, gt=0)


class SyntheticSource(_Frozen):
    """A generated text of `synthetic` characters (see `sources.synthetic`), which is always the same for a seed."""

    synthetic: int = Field(gt=0)
    seed: int = Field(default=1, ge=0)


SOURCES: dict[str, type[_Frozen]] = {
    "url": UrlSource,
    "path": PathSource,
    "dataset": DatasetSource,
    "synthetic": SyntheticSource,
}


def _source_kind(table: object) -> str | None:
    if isinstance(table, _Frozen):
        return next((key for key, kind in SOURCES.items() if isinstance(table, kind)), None)
    if not isinstance(table, Mapping):
        return None
    named = [key for key in SOURCES if key in table]
    return named[0] if len(named) == 1 else None


Source = Annotated[
    Annotated[UrlSource, Tag("url")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[DatasetSource, Tag("dataset")]
    | Annotated[SyntheticSource, Tag("synthetic")],
    Discriminator(
        _source_kind,
        custom_error_type="source_kind",
        custom_error_message="should be a table with exactly one of the keys url, path, dataset, synthetic",
    ),
]


class DocumentsSpec(_Frozen):
    """How the text is cut into documents: not at all, by file, before each line that matches `heading`, or by row."""

    cut: Literal["whole", "file", "heading", "row"] = "whole"
    heading: str | None = None

    @field_validator("heading")
    @classmethod
    def _heading_compiles(cls, heading: str | None) -> str | None:
        if heading is not None:
            Heading(heading)
        return heading

    @model_validator(mode="after")
    def _heading_goes_with_its_cut(self) -> Self:
        if self.cut == "heading" and self.heading is None:
            raise ValueError('cut = "heading" needs heading = "<regular expression>" beside it')
        if self.cut != "heading" and self.heading is not None:
            raise ValueError(f'heading belongs to cut = "heading", and cut is "{self.cut}"')
        return self


class RowsSpec(_Frozen):
    """Files are rows of this format; the text is in one column, `message.content` for a field of a field.

    `delimiter` separates the cells of CSV: a comma if None.
    """

    format: Literal["json", "jsonl", "csv", "parquet"]
    column: str = Field(default="text", min_length=1)
    delimiter: str | None = Field(default=None, pattern=r'^[^\r\n"]$')

    @model_validator(mode="after")
    def _delimiter_goes_with_csv(self) -> Self:
        if self.delimiter is not None and self.format != "csv":
            raise ValueError(f'delimiter belongs to format = "csv", and format is "{self.format}"')
        return self


class SplitSpec(_Frozen):
    """The validation set: the end of the text, measured in characters or documents.

    Of a validation set of more than `validation_characters`, about so many are kept: stretches from all over it.
    """

    by: Literal["position", "document"] = "position"
    validation: float = Field(default=0.1, gt=0, lt=1)
    # Before this field existed, all was kept. Longer sets were cleaned by an older version of the task.
    validation_characters: Annotated[int, AsBefore(2**21), Field(ge=2**16)] = 2**21


# What happens with documents that repeat another one (`sources.duplicates`): they are counted, or also left out.
OnDuplicates = Literal["keep", "drop"]


class PublishedFigure(_Frozen):
    """A published score on the same split, for comparison."""

    name: str = Field(min_length=1)
    bits_per_character: float = Field(gt=0)
    note: str = ""


def _plain_name(name: str) -> str:
    if not CORPUS_NAME.fullmatch(name):
        raise ValueError("a corpus is named with a-z, 0-9 and -, and begins with a letter or a digit")
    if name in RESERVED_NAMES:
        raise ValueError("this name is taken by the project itself; give the corpus (and its file) another")
    return name


CorpusName = Annotated[str, AfterValidator(_plain_name)]


class CorpusSpec(_Frozen):
    """A corpus: its source and everything that determines its text and its split.

    Duplicates are kept and not counted if `duplicates` is None.
    """

    name: CorpusName
    title: str = Field(min_length=1)
    language: Language = "und"
    licence: str = "unknown"
    source: Source
    format: Annotated[Literal["text", "html", "markdown", "epub"], AsBefore("text")] = "text"
    encoding: Annotated[str, AsBefore("utf-8")] = "utf-8"
    rows: Annotated[RowsSpec | None, AsBefore(None)] = None
    cleaning: tuple[str, ...] = ()
    documents: DocumentsSpec = DocumentsSpec()
    split: SplitSpec = SplitSpec()
    duplicates: Annotated[OnDuplicates | None, AsBefore(None)] = None
    published: tuple[PublishedFigure, ...] = ()

    @field_validator("encoding")
    @classmethod
    def _encoding_is_of_text(cls, encoding: str) -> str:
        try:
            return encoding_name(encoding)
        except LookupError as error:
            raise ValueError(
                f"{error}; write the name of an encoding of text, such as utf-8, gb18030, shift_jis or windows-1252"
            ) from error

    @field_validator("cleaning")
    @classmethod
    def _steps_are_known(cls, cleaning: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for step in cleaning:
            if step not in STEP_NAMES:
                raise ValueError(
                    f"{step!r} is not a step{closest(step, STEP_NAMES)}; the steps are {listed(STEP_NAMES)}"
                )
        if len(set(cleaning)) < len(cleaning):
            raise ValueError("names a step twice")
        return cleaning

    @model_validator(mode="after")
    def _cut_suits_the_source(self) -> Self:
        if self.rows is not None and not isinstance(self.source, UrlSource | PathSource):
            raise ValueError("rows belong to a source with files: url or path")
        if self.format != "text" and (self.rows is not None or not isinstance(self.source, UrlSource | PathSource)):
            raise ValueError(f'format = "{self.format}" needs a source with files, url or path, and no [rows]')
        rows = isinstance(self.source, DatasetSource) or self.rows is not None
        if self.documents.cut == "row" and not rows:
            raise ValueError('documents.cut = "row" needs rows (dataset or [rows]); legal here: whole, file, heading')
        if self.documents.cut == "file" and rows:
            raise ValueError('documents.cut = "file" needs files of plain text; legal for rows: whole, heading, row')
        return self

    @model_validator(mode="after")
    def _duplicates_are_documents(self) -> Self:
        if self.duplicates is not None and self.documents.cut == "whole":
            raise ValueError(
                'duplicates are documents that repeat another one, and documents.cut = "whole" makes one document; '
                "cut by heading, file or row, or leave duplicates out"
            )
        return self


class MixturePart(_Frozen):
    """A corpus of a mixture. Its training text stands `weight` times in the mixture's training set.

    The whole part of `weight` is a number of repetitions, the rest a share of the text from its start.
    """

    corpus: str
    weight: float = Field(default=1, gt=0, le=100)


class MixtureSpec(_Frozen):
    """A corpus that is mixed of other corpora of the project.

    `duplicates` are documents that repeat another one of any part. The language and the licence are those of the parts
    if they are None.
    """

    name: CorpusName
    title: str = Field(min_length=1)
    language: Language | None = None
    licence: str | None = None
    mixture: tuple[MixturePart, ...] = Field(min_length=1)
    duplicates: Annotated[OnDuplicates | None, AsBefore(None)] = None

    @field_validator("mixture")
    @classmethod
    def _each_corpus_once(cls, mixture: tuple[MixturePart, ...]) -> tuple[MixturePart, ...]:
        names = [part.corpus for part in mixture]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"names {twice!r} twice; name it once, with the sum of the weights")
        return mixture


AnyCorpus = CorpusSpec | MixtureSpec


def encoding_name(encoding: str) -> str:
    """The usual name of an encoding that Python knows, such as `windows-1252` for `cp1252`.

    Raises:
        LookupError: there is no such encoding of text.
    """
    codec = codecs.lookup(encoding)
    if codec.name.replace("_", "-") in _NO_TEXT:
        raise LookupError(f"{encoding} is not an encoding of text files")
    "".encode(encoding)  # raises LookupError for codecs that do not encode text, such as base64
    return re.sub(r"^cp(125\d)$", r"windows-\1", codec.name.replace("iso8859-", "iso-8859-").replace("_", "-"))


def listed(words: Iterable[str]) -> str:
    """The words as a list in a sentence."""
    return ", ".join(words) or "none"
