"""Laws of the cleaning steps: what each takes, what it leaves, and that its counts are true."""

import unicodedata
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bardflow.sources.cleaning import BLANKS, STEP_NAMES, STEPS, Cleaned, clean, columns, counted, wrap_width
from bardflow.sources.tally import Tally

# Characters that the steps look at, so that chance finds their corners.
atoms = st.sampled_from([*"ab \t\r\n\ufeff\u3000，。三國第回é", "e\u0301", "*** START OF A ***", "*** END OF A ***"])
marks = st.sampled_from(
    [
        *("［＃", "］", "《", "》", "｜", "※", "U+5516", "底本：", "-" * 12, "【テキスト中に現れる記号について】"),
        *("[", "]", "[12]", "[Footnote 1:", "[Illustration", " "),
    ]
)
texts = st.lists(atoms | marks, max_size=30).map("".join)


def lines_of(text: str) -> list[str]:
    *whole, last = text.split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])


def run(text: str, *steps: str) -> tuple[str, tuple[Cleaned, ...]]:
    tallies = [Tally() for _ in steps]
    cleaned = "".join(clean(lines_of(text), steps, tallies))
    return cleaned, counted(steps, tallies)


@given(text=texts)
def test_a_corpus_that_names_no_step_is_left_byte_for_byte(text: str) -> None:
    assert run(text) == (text, ())


@given(text=texts, steps=st.permutations(STEP_NAMES))
def test_characters_in_less_those_removed_plus_those_added_are_the_characters_out(text: str, steps: list[str]) -> None:
    cleaned, counts = run(text, *steps)
    assert [count.step for count in counts] == steps
    assert len(cleaned) == len(text) - sum(c.characters_removed for c in counts) + sum(
        c.characters_added for c in counts
    )


@pytest.mark.parametrize("step", ["strip-bom", "crlf", "nfc"])
@given(text=texts)
def test_cleaning_twice_is_cleaning_once(step: str, text: str) -> None:
    once, _ = run(text, step)
    assert run(once, step)[0] == once


@given(text=texts)
def test_lines_stay_lines_through_every_step(text: str) -> None:
    for step in STEP_NAMES:
        for line in clean(lines_of(text), [step], [Tally()]):
            assert line
            assert "\n" not in line[:-1]


@given(text=texts, steps=st.permutations(STEP_NAMES), size=st.integers(1, 60))
def test_a_text_is_cleaned_the_same_however_it_comes(text: str, steps: list[str], size: int) -> None:
    tallies = [Tally() for _ in steps]
    cleaned = "".join(clean([text[i : i + size] for i in range(0, len(text), size)], steps, tallies))
    counts = [Tally() for _ in steps]
    expected = iter(lines_of(text))
    for step, count in zip(steps, counts, strict=True):
        expected = STEPS[step](expected, count)
    assert cleaned == "".join(expected)
    assert tallies == counts


@pytest.mark.parametrize("step", STEP_NAMES)
def test_a_step_reads_no_more_than_a_bounded_stretch_ahead(step: str) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "A line that is wrapped at about seventy columns, as in a printed book,\n" if read % 9 else "\n"

    assert len(list(islice(clean(endless(), [step], [Tally()]), 100))) == 100
    assert read <= 6_000


def test_a_byte_order_mark_goes_only_where_it_stands_first() -> None:
    assert run("\ufeffa\ufeff\n\ufeffb", "strip-bom")[0] == "a\ufeff\n\ufeffb"
    assert run("\ufeff", "strip-bom")[0] == ""
    assert run("\ufeff\ufeffa", "strip-bom") == (
        "a",
        (Cleaned(step="strip-bom", lines_removed=0, characters_removed=2, characters_added=0),),
    )


@given(text=texts)
def test_after_crlf_no_carriage_return_is_left_and_no_line_lost(text: str) -> None:
    cleaned, _ = run(text, "crlf")
    assert "\r" not in cleaned
    assert cleaned.replace("\n", "") == text.replace("\r", "").replace("\n", "")


def test_line_ends_of_windows_and_of_the_old_macintosh_become_one() -> None:
    assert run("a\r\nb\rc\r\n\r\nd\r\r\ne\r", "crlf")[0] == "a\nb\nc\n\nd\ne\n"


@given(
    text=st.text(
        st.sampled_from(list("aee\u0301\u0327\u0323\n가각ᄀ\u1161\u11a8\u2126")) | st.characters(codec="utf-8")
    )
)
def test_composing_line_by_line_is_composing_the_whole(text: str) -> None:
    assert run(text, "nfc")[0] == unicodedata.normalize("NFC", text)


def test_composing_counts_only_what_changed() -> None:
    _, (count,) = run("cafe\u0301 and cafe\n", "nfc")
    assert (count.characters_removed, count.characters_added) == (2, 1)


BOOK = """The Project Gutenberg EBook of It, by Somebody

This eBook is for the use of anyone anywhere.

*** START OF THIS PROJECT GUTENBERG EBOOK IT ***


CHAPTER I

The text, with *** START OF nothing *** within.

The last line.



End of Project Gutenberg's It, by Somebody

*** END OF THIS PROJECT GUTENBERG EBOOK IT ***

Updated editions will replace the previous one.
*** START: FULL LICENSE ***
"""
BODY = "CHAPTER I\n\nThe text, with *** START OF nothing *** within.\n\nThe last line.\n"


def test_gutenberg_header_and_footer_go_and_nothing_else() -> None:
    cleaned, (count,) = run(BOOK, "gutenberg")
    assert cleaned == BODY
    assert count.lines_removed == BOOK.count("\n") - BODY.count("\n")
    assert count.characters_removed == len(BOOK) - len(BODY)


@pytest.mark.parametrize(
    "mark",
    [
        "*** START OF THE PROJECT GUTENBERG EBOOK IT ***",
        "***START OF THE PROJECT GUTENBERG EBOOK IT***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK A TITLE THAT IS LONGER\nTHAN A LINE ***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK IT",
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    ],
)
def test_every_start_mark_that_gutenberg_used_is_known(mark: str) -> None:
    assert run(BOOK.replace("*** START OF THIS PROJECT GUTENBERG EBOOK IT ***", mark), "gutenberg")[0] == BODY


@pytest.mark.parametrize(
    "mark",
    [
        "*** END OF THE PROJECT GUTENBERG EBOOK IT ***",
        "End of the Project Gutenberg EBook of It, by Somebody",
        "End of Project Gutenberg's It",
        "End of Project Gutenberg’s It",
        "END OF PROJECT GUTENBERG'S IT",
    ],
)
def test_every_end_mark_that_gutenberg_used_is_known(mark: str) -> None:
    text = f"Text.\n\n\n{mark}\n\nAnything.\n"
    assert run(text, "gutenberg")[0] == "Text.\n"


def test_a_text_without_marks_is_left_as_it_is() -> None:
    text = "\n\nNo header.\n\nAnd no end of the project.\n\n"
    assert run(text, "gutenberg")[0] == text


def test_books_in_one_file_are_each_freed_of_their_marks() -> None:
    cleaned, (count,) = run(BOOK * 500, "gutenberg")
    assert cleaned == BODY * 500
    assert count.lines_removed == 500 * (BOOK.count("\n") - BODY.count("\n"))


# Wrapped at 76 columns, from the text that the step was made for (Romance of the Three Kingdoms, in the public domain).
CHINESE = """
第一回：宴桃園豪傑三結義，斬黃巾英雄首立功

　　詞曰：

　　滾滾長江東逝水，浪花淘盡英雄。是非成敗轉頭空：青山依舊在，幾度夕陽紅。白
髮漁樵江渚上，慣看秋月春風。一壺濁酒喜相逢：古今多少事，都付笑談中。

　　話說天下大勢，分久必合，合久必分：周末七國分爭，并入於秦。及秦滅之後，楚
、漢分爭，又并入於漢。漢朝自高祖斬白蛇而起義，一統天下。後來光武中興，傳至獻
帝，遂分為三國。推其致亂之由，殆始於桓、靈二帝。桓帝禁錮善類，崇信宦官。及桓
帝崩，靈帝即位，大將軍竇武、太傅陳蕃，共相輔佐。後人有詩曰：
　　馳驟龍駒氣概多，二人並轡望山河。東吳，西蜀成王霸，千古猶存駐馬坡。
"""


def test_chinese_lines_join_without_a_space_and_paragraphs_and_verse_stay() -> None:
    cleaned, (count,) = run(CHINESE, "unwrap")
    assert "白髮漁樵" in cleaned
    assert "楚、漢分爭" in cleaned
    assert "傳至獻帝，遂分" in cleaned
    assert cleaned.count("\n") == CHINESE.count("\n") - 4
    assert cleaned.replace("\n", "") == CHINESE.replace("\n", "")
    assert "\n第一回：宴桃園豪傑三結義，斬黃巾英雄首立功\n\n　　詞曰：\n" in cleaned
    assert "後人有詩曰：\n　　馳驟龍駒" in cleaned
    assert (count.lines_removed, count.characters_removed, count.characters_added) == (4, 4, 0)


def test_a_heading_ends_the_paragraph_even_right_after_a_full_line() -> None:
    full = "　　深臨險地非容易，更展奇謀豈偶然？未知孟獲整兵再來，勝負如何，且看下文分解"
    text = f"{full}\n。\n{full}\n第九十回：驅巨獸六破蠻兵，燒藤甲七擒孟獲\n　　{full[2:]}\n"
    assert run(text, "unwrap")[0] == f"{full}。\n{full}\n第九十回：驅巨獸六破蠻兵，燒藤甲七擒孟獲\n　　{full[2:]}\n"


def test_a_space_that_stands_for_a_lost_character_begins_no_paragraph() -> None:
    full = "汝回去，重整兵馬，與吾共決勝負；如那時擒住，汝再不服，當滅九族。」叱左右去其"
    assert run(f"{full}\n　，放起孟獲。\n{full}\n", "unwrap")[0] == f"{full}　，放起孟獲。\n{full}\n"


ENGLISH = """CHAPTER I. The Beginning

It was the best of times, it was the worst of times, it was the age of
wisdom, it was the age of foolishness, it was the epoch of belief--it was
the epoch of incredulity, it was the season of Light, it was the half-
forgotten season of Darkness.
The next paragraph follows without a blank line, because the last was short.

Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:

    An indented line stays where it is, however near the edge it comes,
    and so does the next.

We had everything before us, we had nothing before us, we were all going
direct to Heaven, we were all going direct the other way.
"""


def test_english_lines_join_with_one_space_and_verse_stays() -> None:
    cleaned, _ = run(ENGLISH, "unwrap")
    assert cleaned == (
        "CHAPTER I. The Beginning\n\n"
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
        "it was the epoch of belief--it was the epoch of incredulity, it was the season of Light, it was the "
        "half-forgotten season of Darkness.\n"
        "The next paragraph follows without a blank line, because the last was short.\n\n"
        "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"
        "Rough winds do shake the darling buds of May,\nAnd summer's lease hath all too short a date:\n\n"
        "    An indented line stays where it is, however near the edge it comes,\n    and so does the next.\n\n"
        "We had everything before us, we had nothing before us, we were all going direct to Heaven, "
        "we were all going direct the other way.\n"
    )


def test_a_dash_joins_without_a_space() -> None:
    full = "It was the best of times, it was the worst of times, it was the age--"
    text = f"{full}\nof wisdom, and of much else that this line has no more room to tell of\n"
    assert "the age--of wisdom" in run(text, "unwrap")[0]


@pytest.mark.parametrize(
    ("full", "then", "joined"),
    [
        # Hangul is wide, and written with spaces.
        (
            "나의 살던 고향은 꽃피는 산골 복숭아꽃 살구꽃 아기 진달래 울긋불긋 꽃대궐 차린",
            "동네입니다",
            "차린 동네입니다",
        ),
        (
            "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い",
            "じめじめした",
            "薄暗いじめじめした",
        ),
        ("這是一個很長的行，它的結尾是一個英文詞，因為有的文章就是這樣寫的，例如這一個 GPT", "模型", "GPT模型"),
    ],
)
def test_the_joint_follows_the_script(full: str, then: str, joined: str) -> None:
    assert joined in run(f"{full}\n{then}\n", "unwrap")[0]


@pytest.mark.parametrize(
    "text",
    [
        "Every paragraph is one line here, and the lines have all sorts of lengths, as they come.\n"
        + "So has this.\n" * 9,
        "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 50,
        "A line of code()\n    indented = True\n" * 20,
        "x" * 500 + "\n" + "y" * 480 + "\n",
        "\n\n\n",
        "",
    ],
)
def test_a_text_that_is_not_hard_wrapped_passes_unchanged(text: str) -> None:
    assert wrap_width(lines_of(text)) is None
    assert run(text, "unwrap")[0] == text


def test_wide_characters_take_two_columns() -> None:
    assert (columns("三國"), columns("ab"), columns("，a"), columns("é—")) == (4, 2, 3, 2)


def test_steps_run_in_the_order_named() -> None:
    # Before crlf the mark's line ends in \r\n; the other way round gives the same text and other counts.
    windows = BOOK.replace("\n", "\r\n")
    first, _ = run(windows, "crlf", "gutenberg")
    second, counts = run(windows, "gutenberg", "crlf")
    assert first == second == BODY
    assert counts[1].characters_removed == BODY.count("\n")


A_LINE = "the words of a line that is wrapped somewhere before its seventieth"
# A right edge at 70 columns, so that `unwrap` joins; separators that end no line here, beside the ones that do.
WRAPPED = st.lists(
    st.one_of(
        st.sampled_from(
            ["the words of a line that is wrapped somewhere before its seventieth\r\n", "\r", "\n", "\r\n"]
        ),
        st.text(alphabet="ab字，-\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\u1680\u3000\u00a0\r\n ", max_size=90),
    ),
    max_size=40,
).map("".join)


@given(WRAPPED)
@example(f"{A_LINE}\n" * 6 + f"alone\r{A_LINE}\u2028and more\n")
@example(f"{A_LINE}\x0c\n" * 6)
def test_line_ends_and_wrapping_change_and_every_visible_character_stays(text: str) -> None:
    lines = text.split("\n")
    steps = ("crlf", "unwrap")
    tallies = [Tally() for _ in steps]
    given_lines = [f"{line}\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])
    cleaned = "".join(clean(given_lines, steps, tallies))

    def visible(text: str) -> str:
        return "".join(character for character in text if character not in BLANKS)

    assert visible(cleaned) == visible(text)


def test_a_separator_that_ends_no_line_stays_where_it_is() -> None:
    text = "old\rMacintosh\u2028one\x0ctwo\x85three\x1cfour\r"
    assert list(clean([text], ("crlf",), [Tally()])) == ["old\n", "Macintosh\u2028one\x0ctwo\x85three\x1cfour\n"]


# The form of Aozora Bunko's files, with sentences of 夏目漱石 (in the public domain) and marks of all kinds.
AOZORA_HEAD = "吾輩は猫である\n夏目漱石\n\n"
AOZORA = (
    AOZORA_HEAD
    + """-------------------------------------------------------
【テキスト中に現れる記号について】

《》：ルビ
（例）吾輩《わがはい》は猫である

｜：ルビの付く文字列の始まりを特定する記号
（例）一番｜獰悪《どうあく》な種族であった

［＃］：入力者注　主に外字の説明や、傍点の位置の指定
（例）※［＃「言＋墟のつくり」、第4水準2-88-74］
-------------------------------------------------------

［＃８字下げ］一［＃「一」は中見出し］

　吾輩《わがはい》は猫である。名前はまだ無い。
　一番｜獰悪《どうあく》な種族であったそうだ。
［＃ここから２字下げ］
※［＃「言＋墟のつくり」、第4水準2-88-74］《うそ》の皮、※［＃「口＋世」、U+546D、12-5］と云う。
［＃ここで字下げ終わり］
　※［＃ローマ数字1、1-13-21］と※［＃「あ」に似た字、23-4］と※［＃始め二重山括弧、1-1-52］書名※［＃終わり二重山括弧、1-1-53］。
　何でも薄暗い［＃「薄暗い」に傍点］所で［＃「※［＃「口＋世」、U+546D］」はママ］泣いた。



底本：「夏目漱石全集1」ちくま文庫、筑摩書房
　　　1987（昭和62）年9月29日第1刷発行
入力：柴田卓治
青空文庫作成ファイル：
"""
)
AOZORA_BODY = (
    AOZORA_HEAD
    + """一

　吾輩は猫である。名前はまだ無い。
　一番獰悪な種族であったそうだ。
譃の皮、呭と云う。
　Ⅰと〓と《書名》。
　何でも薄暗い所で泣いた。
"""
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_aozora_marks_go_and_characters_that_notes_describe_are_written(end: str) -> None:
    cleaned, (count,) = run(AOZORA.replace("\n", end), "aozora")
    assert cleaned == AOZORA_BODY.replace("\n", end)
    assert count.lines_removed == AOZORA.count("\n") - AOZORA_BODY.count("\n")
    assert run(cleaned, "aozora")[0] == cleaned.replace("《書名》", "")


@pytest.mark.parametrize(
    "text",
    [
        "縦｜棒と《閉じない\n",
        "［＃閉じない\n",
        "※印の文。［注］と〔注〕\n",
        "----------------------\n本文\n----------------------\n",
        "----------------------\n" * 200,
        "これは底本：ではない\n",
        "底の本：\n",
    ],
)
def test_what_only_looks_like_an_aozora_mark_stays(text: str) -> None:
    assert run(text, "aozora")[0] == text


@pytest.mark.parametrize(
    ("note", "character"),
    [
        ("「てへん＋劣」、第3水準1-84-77", "挘"),
        ("二の字点、1-2-22", "〻"),
        ("「插」でつくりの縦棒が下に突き抜けている、第4水準2-13-28", "揷"),
        ("「丂＋咢」、U+20BB7", "𠮷"),
        ("半濁点付き片仮名か、1-4-87", "か\u309a"),
        ("「木＋吶のつくり」", "〓"),
        ("「×」、U+D800", "〓"),
        ("「×」、U+000A", "〓"),
        ("「×」、U+FFFFFF", "〓"),
        ("「×」、第4水準2-99-99", "〓"),
        ("「×」、123-5", "〓"),
        ("「×」、1-2-3-4", "〓"),
    ],
)
def test_a_note_of_a_character_becomes_the_character_or_a_geta_mark(note: str, character: str) -> None:
    assert run(f"前※［＃{note}］後\n", "aozora")[0] == f"前{character}後\n"


def test_a_footer_ends_where_the_next_work_in_the_file_explains_its_marks() -> None:
    cleaned, _ = run(AOZORA * 3, "aozora")
    assert cleaned == AOZORA_BODY + AOZORA_BODY.removeprefix(AOZORA_HEAD) * 2


def test_marks_and_notes_of_footnotes_go_and_other_brackets_stay() -> None:
    text = """A king[1] of old [2], and a queen [A] sat there.[*]

[Illustration]

[Illustration: The king [from an old print]
and the queen]

[Footnote 1: He reigned
[it is said] for long.

And well.] Then [Sidenote: A.D. 1066] he died [sic], in [the year] a[i] = b[12345].
[Footnotes are rare.] [Footnote 9: never closed
"""
    cleaned, (count,) = run(text, "footnotes")
    assert (
        cleaned
        == """A king of old, and a queen sat there.



 Then he died [sic], in [the year] a[i] = b[12345].
[Footnotes are rare.] [Footnote 9: never closed
"""
    )
    assert count.lines_removed == text.count("\n") - cleaned.count("\n") and count.characters_added == 0


def test_a_note_without_end_takes_no_text_with_it() -> None:
    text = "[Footnote 1: it goes on\n" + "and on\n" * 5_000 + "]\n"
    cleaned, (count,) = run(text, "footnotes")
    assert cleaned == text and count.lines_removed == count.characters_removed == 0
