"""Laws of a mirror, which stands in for where a text comes from."""

from pathlib import Path

import pytest

from bardflow.sources.fetch import ChecksumError, FetchError
from tests.site import OTHER, QUICK, SHA, TEXT, Site, bring, closed_port, corpus, refusing, serving


def test_the_mirror_folder_is_asked_first(site: Site, tmp_path: Path) -> None:
    (tmp_path / "mirror/it").mkdir(parents=True)
    (tmp_path / "mirror/it/the text.txt").write_bytes(TEXT)
    fetched, data = bring(tmp_path, corpus(site.url, SHA), mirror=str(tmp_path / "mirror"))
    assert data == TEXT
    assert fetched.address == str(tmp_path / "mirror/it/the text.txt")
    assert not fetched.downloaded
    assert not site.asked


def test_a_mirror_that_lacks_the_file_gives_way_to_the_source(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    fetched, data = bring(tmp_path, corpus(site.url, SHA), mirror=str(tmp_path / "mirror"))
    assert data == TEXT
    assert fetched.address == site.url


def test_a_mirror_folder_with_another_text_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "mirror/it").mkdir(parents=True)
    (tmp_path / "mirror/it/the text.txt").write_bytes(OTHER)
    with pytest.raises(ChecksumError, match=r"mirror/it/the text\.txt"):
        bring(tmp_path, corpus(site.url, SHA), mirror=str(tmp_path / "mirror"))
    assert not list(tmp_path.glob("into-*/*"))


def test_the_mirror_may_be_a_base_url(site: Site, tmp_path: Path) -> None:
    site.answers = [serving(TEXT)]
    base = site.url.removesuffix("/texts/the%20text.txt") + "/mirror/"
    fetched, data = bring(tmp_path, corpus("https://example.invalid/the%20text.txt", SHA), mirror=base)
    assert data == TEXT
    assert site.asked[0][0] == "/mirror/it/the%20text.txt"
    assert fetched.address == base + "it/the%20text.txt"


def test_a_mirror_url_that_lacks_the_file_gives_way_to_the_source(site: Site, tmp_path: Path) -> None:
    site.answers = [refusing(404), serving(TEXT)]
    fetched, data = bring(tmp_path, corpus(site.url, SHA), mirror=site.url.removesuffix("/texts/the%20text.txt"))
    assert data == TEXT
    assert [path for path, _ in site.asked] == ["/it/the%20text.txt", "/texts/the%20text.txt"]
    assert fetched.address == site.url


def test_when_mirror_and_source_fail_the_error_names_both(tmp_path: Path) -> None:
    mirror, url = (f"http://127.0.0.1:{closed_port()}" for _ in range(2))
    with pytest.raises(FetchError) as caught:
        bring(tmp_path, corpus(f"{url}/text.txt"), mirror=mirror, http=QUICK.model_copy(update={"attempts": 1}))
    assert f"{mirror}/it/text.txt" in str(caught.value)
    assert f"{url}/text.txt" in str(caught.value)
