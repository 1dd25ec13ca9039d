"""Laws of downloading, shown against a real server on the loopback that misbehaves on demand."""

import gzip
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.sources.fetch import ChecksumError, Fetched, FetchError, HttpSpec, fetch, file_name
from bardflow.sources.spec import CorpusError
from tests.site import (
    OTHER,
    QUICK,
    SHA,
    TEXT,
    Answer,
    Site,
    bring,
    closed_port,
    corpus,
    head,
    refusing,
    serving,
    truncated,
)


def test_a_file_comes_whole_and_says_from_where(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    seen: list[tuple[int, int | None]] = []
    fetched, data = bring(tmp_path, corpus(site.url), progress=lambda done, total: seen.append((done, total)))
    assert data == TEXT
    assert fetched.address == site.url
    assert fetched.files[0].name == "the text.txt"
    assert (fetched.downloaded, fetched.pinned, fetched.why) == (True, False, f"fetched {len(TEXT):,} bytes")
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert site.asked[0][1]["Accept-Encoding"] == "identity"


def test_a_truncated_download_resumes(site: Site, tmp_path: Path) -> None:
    site.answers = [truncated(TEXT, 100_000), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT
    assert site.ranges() == [None, "bytes=100000-"]
    assert site.asked[1][1]["If-Range"] == '"one"'


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(TEXT) - 1), max_size=4))
def test_wherever_a_transfer_breaks_the_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    site = Site()
    try:

        def breaking_at(cut: int) -> Answer:
            def answer(request: BaseHTTPRequestHandler) -> None:
                start = int((request.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                headers = {"ETag": '"one"', "Content_Length": str(len(TEXT) - start)}
                if start:
                    headers["Content_Range"] = f"bytes {start}-{len(TEXT) - 1}/{len(TEXT)}"
                head(request, 206 if start else 200, **headers)
                request.wfile.write(TEXT[start : max(start, cut)])
                request.close_connection = True

            return answer

        site.answers = [*map(breaking_at, cuts), serving(TEXT)]
        patient = QUICK.model_copy(update={"attempts": 6})
        _, data = bring(tmp_path_factory.mktemp("broken"), corpus(site.url), http=patient)
        assert data == TEXT
    finally:
        site.close()


def test_a_download_that_was_killed_is_gone_on_with_by_the_next_one(site: Site, tmp_path: Path) -> None:
    site.answers = [truncated(TEXT, 50_000)]
    with pytest.raises(FetchError, match="the connection broke off"):
        bring(tmp_path, corpus(site.url), http=QUICK.model_copy(update={"attempts": 1}))
    site.asked.clear()
    site.answers = [serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.ranges() == ["bytes=50000-"]


def test_as_long_as_bytes_come_a_download_does_not_give_up(site: Site, tmp_path: Path) -> None:
    cuts = range(100_000, len(TEXT), 100_000)
    assert len(cuts) > QUICK.attempts

    def breaking(request: BaseHTTPRequestHandler) -> None:
        start = int((request.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": '"one"', "Content_Length": str(len(TEXT) - start)}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(TEXT) - 1}/{len(TEXT)}"
        head(request, 206 if start else 200, **headers)
        request.wfile.write(TEXT[start : start + 100_000])
        request.close_connection = True

    site.answers = [breaking]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT


def test_a_stalled_server_is_left_and_asked_again(site: Site, tmp_path: Path) -> None:
    def stalling(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Range"]:
            serving(TEXT)(request)
            return
        head(request, 200, Content_Length=str(len(TEXT)), ETag='"one"')
        request.wfile.write(TEXT[:1000])
        site.closing.wait()
        request.close_connection = True

    site.answers = [stalling]
    # Tries enough for a busy machine, where the first bytes or a good answer may come late too.
    _, data = bring(tmp_path, corpus(site.url), http=QUICK.model_copy(update={"read_seconds": 2, "attempts": 50}))
    assert data == TEXT
    assert site.ranges()[0] is None
    assert next(asked for asked in site.ranges() if asked) == "bytes=1000-"


def test_a_server_that_always_stalls_is_named_with_the_cause(site: Site, tmp_path: Path) -> None:
    def silent(_: BaseHTTPRequestHandler) -> None:
        site.closing.wait()

    site.answers = [silent]
    with pytest.raises(FetchError) as caught:
        bring(tmp_path, corpus(site.url), http=QUICK.model_copy(update={"read_seconds": 0.3, "attempts": 2}))
    assert site.url in str(caught.value)
    assert "the server fell silent" in str(caught.value)
    assert "2 tries" in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_the_time_it_names(site: Site, tmp_path: Path, status: int) -> None:
    # A day is asked for, and the spec caps it at 0.3 s.
    site.answers = [refusing(status, Retry_After="86400"), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.times[1] - site.times[0] >= 0.3


def test_a_time_to_wait_may_be_a_date(site: Site, tmp_path: Path) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    site.answers = [refusing(503, Retry_After=later), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.times[1] - site.times[0] >= 0.3


def test_without_a_time_named_waits_double(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(500), refusing(502), refusing(504), serving(TEXT)]
    waits = HttpSpec(attempts=4, first_wait_seconds=0.05, longest_wait_seconds=1)
    bring(tmp_path, corpus(site.url), http=waits)
    gaps = [later - earlier for earlier, later in zip(site.times, site.times[1:], strict=False)]
    assert [gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True)] == [True] * 3


def test_a_busy_server_is_not_asked_for_ever(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(503, Retry_After="0")]
    with pytest.raises(FetchError, match=r"503 Service Unavailable.*3 tries"):
        bring(tmp_path, corpus(site.url))
    assert len(site.asked) == 3


def test_a_missing_file_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(404)]
    with pytest.raises(FetchError, match="404 Not Found") as caught:
        bring(tmp_path, corpus(site.url))
    assert len(site.asked) == 1
    assert "CORPORA_MIRROR" in str(caught.value)
    assert "it/the text.txt" in str(caught.value)
    assert "synthetic" in str(caught.value)


def test_a_server_that_is_gone_is_named_with_cause_and_remedies(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/text.txt"
    with pytest.raises(FetchError) as caught:
        bring(tmp_path, corpus(url))
    for part in (url, "refused", "CORPORA_MIRROR", "it/text.txt", "synthetic"):
        assert part in str(caught.value)


def test_an_unchanged_file_is_not_sent_again(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    first, _ = bring(tmp_path, corpus(site.url))
    again, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert again.files == first.files
    assert not again.downloaded
    assert again.why.startswith("not modified since 20")
    assert again.why.endswith("(ETag)")
    assert site.asked[1][1]["If-None-Match"] == '"one"'


def test_a_date_alone_serves_as_well_to_ask_for_changes(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT, etag=None, modified="Sat, 21 Nov 2026 10:00:00 GMT")]
    bring(tmp_path, corpus(site.url))
    again, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert again.why.endswith("(Last-Modified)")


def test_a_changed_file_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT), serving(OTHER, etag='"two"'), serving(OTHER, etag='"two"')]
    bring(tmp_path, corpus(site.url))
    changed, data = bring(tmp_path, corpus(site.url))
    assert data == OTHER
    assert changed.downloaded
    unchanged, data = bring(tmp_path, corpus(site.url))
    assert data == OTHER
    assert not unchanged.downloaded
    # The state before is not kept for ever.
    assert len(list((tmp_path / "downloads").glob("*/body-*"))) == 1


def test_a_server_that_cannot_say_unchanged_sends_again_and_the_reason_says_the_same(
    site: Site, tmp_path: Path
) -> None:
    site.answers = [serving(TEXT, etag=None)]
    bring(tmp_path, corpus(site.url))
    again, _ = bring(tmp_path, corpus(site.url))
    assert again.downloaded
    assert again.why.endswith("the same as before")


def test_a_file_that_changes_between_tries_is_never_mixed(site: Site, tmp_path: Path) -> None:
    site.answers = [truncated(TEXT, 100_000), serving(OTHER, etag='"two"')]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == OTHER


def test_a_server_that_goes_on_with_another_file_is_found_out_by_its_etag(site: Site, tmp_path: Path) -> None:
    def mixing(request: BaseHTTPRequestHandler) -> None:
        """Ignores If-Range: sends the rest of the other file."""
        start = 100_000
        head(
            request,
            206,
            Content_Length=str(len(OTHER) - start),
            Content_Range=f"bytes {start}-{len(OTHER) - 1}/{len(OTHER)}",
            ETag='"two"',
        )
        request.wfile.write(OTHER[start:])

    site.answers = [truncated(TEXT, 100_000), mixing, serving(OTHER, etag='"two"')]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == OTHER


def test_a_resumed_download_with_a_wrong_sha256_is_tried_once_from_scratch(site: Site, tmp_path: Path) -> None:
    # The etag stays the same although the file changed: only the digest can tell.
    site.answers = [truncated(OTHER, 100_000), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT
    assert site.ranges() == [None, "bytes=100000-", None]


def test_a_wrong_sha256_names_both_digests_and_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(OTHER)]
    with pytest.raises(ChecksumError) as caught:
        bring(tmp_path, corpus(site.url, SHA))
    assert SHA in str(caught.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
    assert site.url in str(caught.value)
    assert len(site.asked) == 1
    assert not list(tmp_path.glob("into-*/*"))
    site.answers = [serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT


def test_a_server_that_ignores_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    def whole(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(TEXT)), ETag='"one"')
        request.wfile.write(TEXT)

    site.answers = [truncated(TEXT, 100_000), whole]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT


def test_a_range_that_cannot_be_had_starts_from_scratch(site: Site, tmp_path: Path) -> None:
    site.answers = [truncated(TEXT, 100_000), refusing(416), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.ranges() == [None, "bytes=100000-", None]


def test_a_weak_etag_is_not_resumed_on(site: Site, tmp_path: Path) -> None:
    site.answers = [truncated(TEXT, 100_000, etag='W/"one"'), serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.ranges() == [None, None]


def test_a_length_promised_too_great_is_a_broken_connection(site: Site, tmp_path: Path) -> None:
    def boasting(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(TEXT) + 5))
        request.wfile.write(TEXT)
        request.close_connection = True

    site.answers = [boasting]
    with pytest.raises(FetchError, match="the connection broke off"):
        bring(tmp_path, corpus(site.url))


def test_a_length_promised_too_small_is_found_out_by_the_sha256(site: Site, tmp_path: Path) -> None:
    def belittling(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(TEXT) - 5))
        request.wfile.write(TEXT)
        request.close_connection = True

    site.answers = [belittling]
    with pytest.raises(ChecksumError):
        bring(tmp_path, corpus(site.url, SHA))


def test_a_part_whose_whole_length_is_another_is_not_taken_for_complete(site: Site, tmp_path: Path) -> None:
    def short(request: BaseHTTPRequestHandler) -> None:
        """Says that all is there, in a range that ends early."""
        head(
            request,
            206,
            Content_Length="1000",
            Content_Range=f"bytes 100000-100999/{len(TEXT)}",
            ETag='"one"',
        )
        request.wfile.write(TEXT[100_000:101_000])

    site.answers = [truncated(TEXT, 100_000), short, serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.ranges() == [None, "bytes=100000-", "bytes=101000-"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_over_the_size_cap_is_refused(site: Site, tmp_path: Path, declared: bool) -> None:
    def big(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, **({"Content_Length": str(len(TEXT))} if declared else {"Connection": "close"}))
        try:
            request.wfile.write(TEXT)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    site.answers = [big]
    with pytest.raises(CorpusError, match="max_bytes = 100,000") as caught:
        bring(tmp_path, corpus(site.url, max_bytes=100_000))
    assert not isinstance(caught.value, FetchError)
    # What is declared is refused before a byte is stored, so that the whole size can be named.
    assert (f"{len(TEXT):,} bytes" in str(caught.value)) == declared
    assert not list((tmp_path / "downloads").glob("*/part*"))


def test_a_redirect_is_followed_and_the_name_is_that_of_the_address_given(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(302, Location="/elsewhere/other-name.bin"), serving(TEXT)]
    fetched, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert fetched.files[0].name == "the text.txt"
    assert site.asked[1][0] == "/elsewhere/other-name.bin"


def test_a_redirect_without_end_is_an_error(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(302, Location="/again")]
    with pytest.raises(FetchError, match="redirects more than 10 times"):
        bring(tmp_path, corpus(site.url))


def test_a_server_that_compresses_unasked_is_understood(site: Site, tmp_path: Path) -> None:
    packed = gzip.compress(TEXT)

    def compressed(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(packed)), Content_Encoding="gzip", ETag='"packed"')
        request.wfile.write(packed)

    site.answers = [compressed]
    _, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT


def test_a_compressed_transfer_that_breaks_off_is_not_resumed(site: Site, tmp_path: Path) -> None:
    packed = gzip.compress(TEXT)

    def broken(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(packed)), Content_Encoding="gzip", ETag='"one"')
        request.wfile.write(packed[: len(packed) // 2])
        request.close_connection = True

    site.answers = [broken, serving(TEXT)]
    _, data = bring(tmp_path, corpus(site.url))
    assert data == TEXT
    assert site.ranges() == [None, None]


def test_a_pinned_file_that_is_here_asks_no_network(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    bring(tmp_path, corpus(site.url, SHA))
    fetched, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT
    assert len(site.asked) == 1
    assert (fetched.downloaded, fetched.pinned) == (False, True)
    assert fetched.why == "the pinned sha256 is already here"


@pytest.mark.parametrize("pinned", [True, False])
def test_a_kept_file_that_was_damaged_is_fetched_anew(site: Site, tmp_path: Path, pinned: bool) -> None:
    site.answers = [serving(TEXT)]
    spec = corpus(site.url, SHA if pinned else None)
    bring(tmp_path, spec)
    (body,) = (tmp_path / "downloads").glob("*/body-*")
    body.write_bytes(TEXT[:-1] + b"?")
    fetched, data = bring(tmp_path, spec)
    assert data == TEXT
    assert fetched.downloaded


def test_damaging_the_copy_leaves_the_kept_file_whole(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    bring(tmp_path, corpus(site.url, SHA))
    (copy,) = tmp_path.glob("into-*/the text.txt")
    with copy.open("r+b") as file:
        file.write(b"damaged")
    _, data = bring(tmp_path, corpus(site.url, SHA))
    assert data == TEXT
    assert len(site.asked) == 1


def test_two_who_fetch_at_once_get_the_same_whole_file_from_one_transfer(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: bring(tmp_path, corpus(site.url, SHA)), range(4)))
    assert [data == TEXT for _, data in results] == [True] * 4
    assert sum(fetched.downloaded for fetched, _ in results) == 1
    assert len(site.asked) == 1


def test_a_folder_that_is_not_empty_is_not_fetched_into(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "into/old.txt").write_text("old")
    with pytest.raises(CorpusError, match="is not empty"):
        fetch(corpus("http://127.0.0.1:9/x"), tmp_path / "into", downloads=tmp_path / "downloads", mirror=None)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/b.txt?raw=1#top", "b.txt"),
        ("https://example.org/%E4%B8%89%E5%9B%BD.txt", "三国.txt"),
        ("https://example.org/", "corpus.txt"),
        ("https://example.org", "corpus.txt"),
        ("https://example.org/a%2F..%2F..%2Fetc", "etc"),
        ("https://example.org/a/..", "corpus.txt"),
    ],
)
def test_a_files_name_is_the_last_part_of_its_address_and_never_leads_out_of_the_folder(url: str, name: str) -> None:
    assert file_name(url) == name


def test_what_a_fetch_returns_is_plain_data(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    fetched, _ = bring(tmp_path, corpus(site.url))
    assert Fetched.model_validate(json.loads(fetched.model_dump_json())) == fetched
