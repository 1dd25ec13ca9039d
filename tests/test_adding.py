"""What `bard corpus add` finds in a text: its encoding, its containers, the cleaning steps and documents it needs."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest

from bardflow.sources.adding import PROPOSED, Added, look, source_at
from bardflow.sources.corpora import load_corpus, write_corpus
from bardflow.sources.documents import read
from bardflow.sources.encoding import detect
from bardflow.sources.fetch import fetch
from bardflow.sources.spec import CorpusError, CorpusSpec
from bardflow.sources.unpack import raw_texts
from tests.conftest import CHECKOUT
from tests.test_cleaning import AOZORA, AOZORA_BODY

RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею гувернанткой.\n"
)
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。\n"
)
CHINESE = (
    "話說天下大勢，分久必合，合久必分：周末七國分爭，并入於秦；及秦滅之後，楚、漢分爭，又并入於漢。\n"
    "漢朝自高祖斬白蛇而起義，一統天下，後來光武中興，傳至獻帝，遂分為三國。\n"
)
KOREAN = (
    "나 보기가 역겨워 가실 때에는 말없이 고이 보내 드리오리다.\n영변에 약산 진달래꽃 아름 따다 가실 길에 뿌리오리다.\n"
)
GREEK = (
    "Η θάλασσα είναι ήρεμη σήμερα και ο ουρανός καθαρός.\n"
    "Τα παιδιά παίζουν στην αυλή και η γιαγιά τους λέει παραμύθια.\n"
)
POLISH = "Litwo! Ojczyzno moja! ty jesteś jak zdrowie.\nIle cię trzeba cenić, ten tylko się dowie, kto cię stracił.\n"
GERMAN = (
    "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch;\n"
    "die Vögelein schweigen im Walde. Größe.\n"
)
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte,\nmes yeux se fermaient si vite.\n"
)
HEBREW = "בראשית ברא אלהים את השמים ואת הארץ.\nוהארץ היתה תהו ובהו וחשך על פני תהום ורוח אלהים מרחפת על פני המים.\n"
TURKISH = (
    "İstanbul'da güneşli bir gün. Çocuklar bahçede oynuyor, öğretmen şiir okuyor.\nAğaçların gölgesinde oturduk.\n"
)
UKRAINIAN = "Реве та стогне Дніпр широкий, сердитий вітер завива,\nдодолу верби гне високі, горами хвилю підійма.\n"
SWEDISH = (
    "Det var en gång en flicka som hette Åsa. Hon bodde vid sjön, där björkarna växer.\n"
    "Över ängen gick hon varje dag för att hämta mjölk.\n"
)
QUOTES = "“Don’t,” he said — “it’s café.”\nA plain line follows it.\n"
PLAIN = "To be, or not to be, that is the question.\nWhether ’tis nobler in the mind to suffer.\n"


def added(folder: Path, spec: CorpusSpec | None = None, source: Path | None = None, **more: Any) -> Added:
    spec = spec or CorpusSpec(name="it", title="It", source=source_at(str(source or folder / "it.txt"), folder))
    return look(spec, project=folder, downloads=folder / "downloads", mirror=None, propose=PROPOSED, **more)


def text_of(found: Added, folder: Path, *, cleaned: bool = True) -> str:
    """The text that a run reads of a corpus in the project `folder`."""
    spec = found.spec if cleaned else found.spec.model_copy(update={"cleaning": ()})
    with TemporaryDirectory() as into:
        fetch(spec, Path(into), downloads=folder / "downloads", mirror=None, project=folder)
        return "".join(piece.text for piece in read(spec, Path(into)))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((RUSSIAN, encoding) for encoding in ("koi8-r", "windows-1251", "iso-8859-5", "cp866", "utf-8", "utf-16")),
        *((JAPANESE, encoding) for encoding in ("shift_jis", "euc-jp", "iso2022-jp", "utf-8", "utf-16", "utf-32")),
        *((CHINESE, encoding) for encoding in ("gb18030", "big5", "utf-8", "utf-16", "utf-16-le", "utf-16-be")),
        *((KOREAN, encoding) for encoding in ("euc-kr", "utf-8")),
        *((GREEK, encoding) for encoding in ("windows-1253", "iso-8859-7")),
        (POLISH, "windows-1250"),
        *((GERMAN, encoding) for encoding in ("windows-1252", "iso-8859-1")),
        *((FRENCH, encoding) for encoding in ("windows-1252", "iso-8859-1", "utf-8-sig")),
        *((HEBREW, encoding) for encoding in ("windows-1255", "iso-8859-8")),
        *((TURKISH, encoding) for encoding in ("windows-1254", "iso-8859-9")),
        *((UKRAINIAN, encoding) for encoding in ("windows-1251", "koi8-u")),
        (SWEDISH, "iso-8859-1"),
        (QUOTES, "windows-1252"),
        (PLAIN.replace("’", "'"), "ascii"),
    ],
    ids=lambda value: value if len(value) < 20 else value[:6],
)
def test_an_encoding_is_detected_written_and_read_without_another_guess(
    text: str, encoding: str, tmp_path: Path
) -> None:
    text = text * 6
    (tmp_path / "it.txt").write_bytes(text.encode(encoding))
    found = added(tmp_path)
    assert text_of(found, tmp_path, cleaned=False).removeprefix("\ufeff") == text
    assert found.detected is not None and found.detected.line and found.detected.line in text


def test_a_part_in_ascii_does_not_decide_the_encoding(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(("A header in plain English.\n" * 4_000 + RUSSIAN * 20).encode("koi8-r"))
    assert added(tmp_path).spec.encoding == "koi8-r"
    (tmp_path / "it.txt").write_bytes(("A plain line.\n" * 9_000 + FRENCH * 20).encode("windows-1252"))
    assert added(tmp_path).spec.encoding == "windows-1252"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(PLAIN.replace("’", "'").encode())
    (tmp_path / "texts" / "b.txt").write_bytes((RUSSIAN * 6).encode("koi8-r"))
    found = added(tmp_path, source=tmp_path / "texts")
    assert found.spec.encoding == "koi8-r" and RUSSIAN in text_of(found, tmp_path, cleaned=False)


@pytest.mark.parametrize("place", [100, 200_000])
def test_damaged_utf_8_stays_an_error_and_is_taken_for_no_other_encoding(place: int, tmp_path: Path) -> None:
    data = bytearray((JAPANESE * 900).encode())
    start = next(at for at in range(place, place + 3) if data[at] >= 0xC0)
    data[start + 1] = 0x20
    (tmp_path / "it.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=rf"it\.txt is not UTF-8: byte {start:,} .*damaged"):
        added(tmp_path)


@pytest.mark.parametrize("encoding", ["shift_jis", "cp1252", "iso8859-2", "UTF16", "latin-1", "gb18030"])
def test_a_written_corpus_file_is_read_as_an_equal_spec(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes((JAPANESE * 6).encode("shift_jis"))
    detected = added(tmp_path).spec
    given = CorpusSpec(name="given", title="Given", source=detected.source, encoding=encoding)
    for spec in (detected, given):
        write_corpus(spec, tmp_path)
        assert load_corpus(spec.name, tmp_path) == spec


@pytest.mark.parametrize(("encoding", "place"), [("utf-8", 200_003), ("utf-16-le", 400_006), ("utf-32-be", 800_012)])
def test_a_nul_character_is_an_error_with_its_place(encoding: str, place: int, tmp_path: Path) -> None:
    text = "a" * 200_003 + "\0" + "b" * 200_000
    (tmp_path / "it.txt").write_bytes(text.encode(encoding))
    spec = CorpusSpec(name="it", title="It", source=source_at(str(tmp_path / "it.txt"), tmp_path), encoding=encoding)
    with pytest.raises(CorpusError, match=f"it\\.txt is a binary file: byte {place:,} is NUL"):
        look(spec, project=tmp_path, downloads=tmp_path, mirror=None)


def test_a_file_in_another_encoding_than_its_corpus_says_is_an_error_with_place_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(("plain\n" * 50_000 + RUSSIAN * 50).encode("koi8-r"))
    spec = CorpusSpec(name="it", title="It", source=source_at(str(tmp_path / "it.txt"), tmp_path), encoding="euc-kr")
    with pytest.raises(CorpusError, match=r"it\.txt is not euc-kr: byte 300,\d{3} \(0x\w\w\).*looks like koi8-r"):
        look(spec, project=tmp_path, downloads=tmp_path, mirror=None)


@pytest.mark.parametrize("encoding", ["utf-9", "undefined", "idna", "rot13", "base64", "unicode_escape", "utf-7", ""])
def test_what_is_no_encoding_of_files_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match="encoding of text"):
        CorpusSpec(name="it", title="It", source={"path": "it.txt"}, encoding=encoding)


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_text_is_read_through_whatever_its_name_is_and_the_packed_file_is_pinned(
    kind: str, tmp_path: Path
) -> None:
    text = (RUSSIAN.replace(". ", ".\n")) * 6_000  # more than a block
    packed = PACKED[kind](text.encode("koi8-r"))
    (tmp_path / "it.txt").write_bytes(packed)
    found = added(tmp_path, pin=True)
    assert text_of(found, tmp_path, cleaned=False) == text and found.spec.encoding == "koi8-r"
    assert found.fetched.files[0].bytes == len(packed) and found.spec.source.sha256 is not None  # type: ignore[union-attr]
    (tmp_path / "it.txt").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"it\.txt is damaged"):
        added(tmp_path)


def test_the_files_of_a_zip_of_a_folder_and_of_a_glob_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("b/2.txt", "a/1.txt", "__MACOSX/a/._1.txt", "c/"):
            archive.writestr(name, "" if name.endswith("/") else f"{name}: {PLAIN}")
    for name in ("2.txt", "1.txt.gz"):
        data = f"{name}: {PLAIN}".encode()
        (tmp_path / "texts" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for place, names in (("it.zip", "a/1.txt b/2.txt"), ("texts", "1.txt.gz 2.txt"), ("texts/*.*", "1.txt.gz 2.txt")):
        found = added(tmp_path, source=tmp_path / place)
        assert found.survey.documents == 2 and found.spec.documents.cut == "file"
        assert text_of(found, tmp_path) == "".join(f"{name}: {PLAIN}" for name in names.split())


def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "it.txt", "wb") as file:
        for _ in range(128):
            file.write(b"a" * (1 << 20))
    assert (tmp_path / "it.txt").stat().st_size < 1 << 18
    with pytest.raises(CorpusError, match=r"it\.txt unpacks to more than 200 times its [\d,]+ bytes"):
        added(tmp_path)
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("it.txt", b"a" * (1 << 26))
    with pytest.raises(CorpusError, match=r"it\.zip/it\.txt unpacks to more than 200 times"):
        added(tmp_path, source=tmp_path / "it.zip")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../it.txt": PLAIN}, r"outside of the archive: '\.\./it\.txt'"),
        ({"/it.txt": PLAIN}, "outside of the archive"),
        ({"a/../../it.txt": PLAIN}, "outside of the archive"),
        ({"C:\\it.txt": PLAIN}, "outside of the archive"),
        ({}, "empty zip archive"),
        ({".hidden": PLAIN}, "without files"),
        ({"[Content_Types].xml": "", "word/document.xml": ""}, "an Office document"),
        ({"mimetype": "application/epub+zip", "a.html": ""}, "an EPUB or OpenDocument file"),
        ({"a.txt.gz": gzip.compress(b"text", mtime=0)}, "gzip-compressed data within other compressed data"),
    ],
)
def test_an_archive_that_is_no_archive_of_texts_is_refused(members: dict[str, Any], said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CorpusError, match=said):
        added(tmp_path, source=tmp_path / "it.zip")


def test_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", RUSSIAN * 100)
    data = bytearray((tmp_path / "it.zip").read_bytes())
    for damaged in (bytes(data[:60]), bytes(data[:80]) + bytes([data[80] ^ 1]) + bytes(data[81:])):
        (tmp_path / "it.zip").write_bytes(damaged)
        with pytest.raises(CorpusError, match="damaged"):
            added(tmp_path, source=tmp_path / "it.zip")


def test_a_zip_that_needs_another_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("a.txt", PLAIN)
    data = (tmp_path / "it.zip").read_bytes()
    central = data.index(b"PK\x01\x02")
    # Offsets in a header of the central directory: the version that is needed (6), the flags (8), the method (10).
    for offset, value, said in (
        *((6, 99, "cannot be unpacked"), (8, 0x01, "is encrypted"), (8, 0x40, "is encrypted")),
        *((8, 0x20, "compressed in an unusual way"), (10, 99, "compressed in an unusual way")),
    ):
        changed = bytearray(data)
        changed[central + offset] = value
        (tmp_path / "it.zip").write_bytes(changed)
        with pytest.raises(CorpusError, match=said):
            added(tmp_path, source=tmp_path / "it.zip")


def test_a_colon_in_a_members_name_is_no_drive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("Volume 1: Spring.txt", PLAIN)
    assert text_of(added(tmp_path, source=tmp_path / "it.zip"), tmp_path) == PLAIN


@pytest.mark.parametrize("kind", PACKED)
def test_an_error_of_the_disk_is_not_called_damage(kind: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(PACKED[kind](RUSSIAN.encode()))
    [text] = raw_texts(tmp_path / "it.txt", "it.txt")
    (tmp_path / "it.txt").unlink()
    with pytest.raises(FileNotFoundError), text.open():
        pass


def test_the_steps_that_change_a_text_are_written_and_their_counts_shown(tmp_path: Path) -> None:
    header, footer = (
        "\ufeffProject Gutenberg\n\n*** START OF THE BOOK ***\n\n",
        "\n*** END OF THE BOOK ***\nx\n",
    )
    book = header + PLAIN * 30 + footer
    (tmp_path / "it.txt").write_bytes(book.replace("\n", "\r\n").encode())
    found = added(tmp_path)
    assert found.spec.cleaning == ("strip-bom", "crlf", "gutenberg")
    assert text_of(found, tmp_path) == PLAIN * 30
    assert [step.step for step in found.cleaned] == list(found.spec.cleaning)
    assert found.before.startswith("\ufeffProject") and found.after.startswith("To be")
    assert found.survey.cleaning == () and found.survey.distinct == len(set(PLAIN))
    kept = look(found.spec.model_copy(update={"cleaning": ()}), project=tmp_path, downloads=tmp_path, mirror=None)
    assert kept.spec.cleaning == () and "\r" in text_of(kept, tmp_path)


def test_the_marks_of_an_aozora_text_are_proposed_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(AOZORA.replace("\n", "\r\n").encode("shift_jis"))
    found = added(tmp_path)
    assert found.spec.cleaning == ("crlf", "aozora") and found.spec.language == "ja"
    assert text_of(found, tmp_path) == AOZORA_BODY and found.survey.cleaning == ()
    (tmp_path / "it.txt").write_text("《三國志》是一部書。" + CHINESE * 9)
    assert added(tmp_path).spec.cleaning == ()


def test_bytes_that_are_no_text_have_no_encoding() -> None:
    assert detect(bytes(range(128, 256)) * 20) is None


PLAY = ("First Citizen:\nBefore we proceed any fur", "tleman,\nProsperity be thy page!\n\nMARCIUS")
ROWS_OF_PLAY = (PLAY[0], PLAY[1][1:] + "\n")
FAMILY = ("Все счастливые семьи похожи друг на друг", "счастливая семья несчастлива по-своему. ")
QUOTES_ENDS = ("“Don’t,” he said — “it’s café.”\n“Don’t,”", " café.”\n“Don’t,” he said — “it’s café.”\n")
# Name, distinct characters, documents, and the first and last 40 characters.
CASES: list[tuple[str, int, int, tuple[str, str]]] = [
    ("book-crlf-bom.txt", 58, 1, (PLAY[0], PLAY[1][1:] + "\n")),
    ("lines-crlf.txt", 58, 1, PLAY),
    ("messages.jsonl", 58, 100, ROWS_OF_PLAY),
    ("rows.jsonl", 58, 100, ROWS_OF_PLAY),
    ("songs.csv", 58, 80, ROWS_OF_PLAY),
    (
        "novel.gb18030.txt",
        1_412,
        1,
        (
            "曰：「天下將亂，非命世之才，不能濟。能安之者，其在君乎\n？」南陽何顒見操，言：「",
            "曰：「今上闇弱，不可以奉宗廟；吾將依伊尹、霍光故事，廢帝為弘農王，立陳留王皇帝。",
        ),
    ),
    ("russian.koi8-r.txt", 27, 1, FAMILY),
    ("russian.cp1251.txt", 27, 1, FAMILY),
    (
        "quotes.cp1252.txt",
        21,
        1,
        ("“Don’t,” he said — “it’s café.”\n“Don’t,”", " café.”\n“Don’t,” he said — “it’s café.”\n"),
    ),
    ("play.txt.gz", 58, 1, PLAY),
    ("play.txt.xz", 58, 1, PLAY),
    ("folder", 58, 20, PLAY),
]


@pytest.mark.parametrize(("name", "distinct", "documents", "ends"), CASES, ids=[case[0] for case in CASES])
def test_files_that_users_bring_are_read_as_they_mean_them(
    name: str, distinct: int, documents: int, ends: tuple[str, str], tmp_path: Path
) -> None:
    source = CHECKOUT.parent / "shared" / "cases" / name
    if not source.exists():
        pytest.skip("needs the files that users brought, beside the checkout")
    found = added(tmp_path, source=source)
    text = text_of(found, tmp_path)
    assert (found.survey.distinct, found.survey.documents, text[:40], text[-40:]) == (distinct, documents, *ends)


CHAPTER = "It was the best of times, it was the worst of times, it was the age of wisdom.\n" * 12
HEADINGS = {
    "第一回：宴桃園 第二回：張翼德 第三回：議溫明 第十二回：陶恭祖": "回",
    "第1章 第2章 第３章": "章",
    "第一章 第二章 第三章": "章",
    "CHAPTER I. Down the Rabbit-Hole|CHAPTER II. The Pool of Tears|CHAPTER III.": "CHAPTER",
    "Chapter 1|Chapter 2|Chapter 3|Chapter 4": "Chapter",
    "Chapter One|Chapter Two|Chapter Three": "Chapter",
    "STAVE ONE|STAVE TWO|STAVE THREE": "STAVE",
    "CHAPITRE PREMIER|CHAPITRE II|CHAPITRE III": "CHAPITRE",
    "Capítulo primero|Capítulo II|Capítulo III": "Capítulo",
    "Erstes Kapitel|Zweites Kapitel|Drittes Kapitel": "Kapitel",
    "Глава первая|Глава вторая|Глава третья": "Глава",
    "I.|II.|III.|IV.": "IVX",
    "ADVENTURE I. A SCANDAL IN BOHEMIA|ADVENTURE 2. THE LEAGUE|VII. THE ADVENTURE OF THE BAND": "IVX",
    "ACT I|ACT II|ACT III|ACT IV|ACT V": "ACT",
    "BOOK THE FIRST|BOOK II|BOOK III": "BOOK",
}


@pytest.mark.parametrize("headings", HEADINGS)
def test_chapters_become_documents(headings: str, tmp_path: Path) -> None:
    lines = headings.split("|") if "|" in headings else headings.split(" ")
    (tmp_path / "it.txt").write_text("A preface.\n\n" + "".join(f"{line}\n\n{CHAPTER}\n" for line in lines))
    found = added(tmp_path, duplicates="keep")  # all chapters have the same text
    assert found.spec.documents.cut == "heading" and HEADINGS[headings] in str(found.spec.documents.heading)
    assert found.survey.documents == len(lines) + 1
    assert found.survey == added(tmp_path, found.spec, duplicates="keep").survey


@pytest.mark.parametrize(
    "text",
    [
        "CHAPTER I\n" + CHAPTER * 3,
        "".join(f"CHAPTER {n}. A title\n" for n in range(1, 30)) + CHAPTER * 30,
        f"In chapter 1 we saw this.\n{CHAPTER}" * 5,
        f"Part of the ship\n{CHAPTER}" * 5,
        f"Book me a room\n{CHAPTER}" * 5,
        f"Acting as if\n{CHAPTER}" * 5,
        f"I am here\n{CHAPTER}" * 5,
        f"A. S. S.\n{CHAPTER}" * 5,
        # The headings of one long chapter's parts, as in the first of Sherlock Holmes' adventures.
        f"I.\n{CHAPTER}II.\n{CHAPTER}III.\n{CHAPTER}" + CHAPTER * 20,
    ],
)
def test_a_table_of_contents_and_a_sentence_are_no_chapters(text: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(text)
    assert added(tmp_path).spec.documents.cut == "whole"


@pytest.mark.parametrize(
    ("head", "title", "language"),
    [
        ("The Project Gutenberg eBook of A Play\n\nTitle: A Long Play\n\nLanguage: English\n\n", "A Long Play", "en"),
        ("The Project Gutenberg EBook of Les Misérables, by Victor Hugo\n\nLanguage: French\n", "Les Misérables", "fr"),
        (
            "The Project Gutenberg Etext of The Adventures of Sherlock Holmes\n",
            "The Adventures of Sherlock Holmes",
            "und",
        ),
        ("Title: 三國志演義\r\nLanguage: Chinese\r\n", "三國志演義", "zh"),
        ("Language: Klingon\n", "It", "und"),
        (JAPANESE, "It", "ja"),
        (CHINESE, "It", "zh"),
        (KOREAN, "It", "ko"),
        (GREEK, "It", "el"),
        (HEBREW, "It", "he"),
        (RUSSIAN, "It", "und"),
        (PLAIN, "It", "und"),
    ],
)
def test_title_and_language_are_what_the_text_says(head: str, title: str, language: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(head + "\n\n" + (PLAIN if head.isascii() or "Lang" in head else head) * 9)
    found = added(tmp_path)
    assert (found.spec.title, found.spec.language) == (title, language)
