"""A file from a web address is whole and of one version, whoever else fetches it, and whatever the server does."""

import base64
import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from featcache.extraction.sources.http_files import fetch_all
from featcache.store.errors import DatasetError
from featcache.store.files import atomic_file
from featcache.store.progress import Silent
from featcache.store.transfer import fetch
from support.servers import http_server
from support.versions import Versions, VersionsHandler

OLD, NEW = bytes([1]) * 300_000, bytes([2]) * 300_000


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of one file, in versions; what is fetched goes to the test's folder."""
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    site = Versions(OLD)
    with http_server(type("Handler", (VersionsHandler,), {"site": site})) as port:
        site.address = f"http://127.0.0.1:{port}/shards/a.tar"
        yield site


def fetched(site: Versions) -> bytes:
    return fetch_all([site.address], Silent())[0].read_bytes()


def begun(tmp_path: Path) -> list[Path]:
    """The files on their way, and their notes."""
    return sorted(path for path in (tmp_path / "data").rglob("a.tar*") if path.name != "a.tar")


def break_off(site: Versions, after: int) -> None:
    """Fetch it in vain: of every answer only so many bytes come."""
    site.cut = after
    with pytest.raises(DatasetError, match=r"shards/a\.tar could not be fetched: .* ended after|broke off"):
        fetched(site)
    site.cut = None
    site.asked.clear()


def test_what_broke_off_resumes_at_its_byte(site, tmp_path):
    break_off(site, 100_000)
    assert len(begun(tmp_path)) == 2
    assert fetched(site) == OLD
    assert site.asked[0]["Range"].startswith("bytes=")
    assert site.asked[0]["If-Range"] == site.tag
    assert len(site.asked) == 1
    assert begun(tmp_path) == []


@pytest.mark.parametrize("honours", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(site, tmp_path, honours):
    """Whether the server knows If-Range, or sends the rest of the new file all the same."""
    break_off(site, 100_000)
    site.data, site.knows_if_range = NEW, honours
    assert fetched(site) == NEW
    assert begun(tmp_path) == []


@pytest.mark.parametrize("headers", [{"ETag": 'W/"weak"'}, {"ETag": None}])
def test_without_a_strong_tag_nothing_is_resumed(site, tmp_path, headers):
    site.headers = headers
    break_off(site, 100_000)
    assert begun(tmp_path) == []
    site.data = NEW
    assert fetched(site) == NEW


def test_the_time_of_the_last_change_will_do_for_a_tag(site):
    site.headers = {"ETag": None, "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    break_off(site, 100_000)
    assert fetched(site) == OLD
    assert site.asked[0]["If-Range"] == "Wed, 21 Oct 2015 07:28:00 GMT"


def test_a_begun_file_that_is_too_long_is_not_taken_for_whole(site, tmp_path):
    break_off(site, 100_000)
    partial = next(path for path in begun(tmp_path) if path.suffix == ".partial")
    partial.write_bytes(OLD + b"rubbish")
    assert fetched(site) == OLD


@pytest.mark.parametrize("note", [b"", b"{}", b'{"tag": 7, "size": "x"}', b"[" * 100])
def test_a_damaged_note_is_none(site, tmp_path, note):
    break_off(site, 100_000)
    next(path for path in begun(tmp_path) if path.suffix == ".version").write_bytes(note)
    assert fetched(site) == OLD
    assert "Range" not in site.asked[0]


def test_a_part_that_is_another_one_is_not_appended(site):
    break_off(site, 100_000)
    site.lie_about_range = True
    assert fetched(site) == OLD


def test_more_than_is_declared_is_refused(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_UNDECLARED_BYTES", 200_000)
    site.headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    with pytest.raises(DatasetError, match="more than 200000 bytes arrive"):
        fetched(site)
    assert begun(tmp_path) == []


@pytest.mark.parametrize(
    "header",
    [
        "Repr-Digest: sha-256=:{sha256}:",
        "Digest: SHA-256={sha256}",
        "Content-MD5: {md5}",
        "x-goog-hash: crc32c=AA==, md5={md5}",
    ],
)
def test_a_declared_digest_is_held_to(site, tmp_path, header):
    digests = {name: base64.b64encode(hashlib.new(name, OLD).digest()).decode() for name in ("sha256", "md5")}
    name, _, value = header.format(**digests).partition(": ")
    site.headers = {name: value}
    assert fetched(site) == OLD
    next((tmp_path / "data").rglob("a.tar")).unlink()
    site.data = NEW
    with pytest.raises(DatasetError, match=r"does not have the (sha256|md5) that the server declares"):
        fetched(site)
    assert begun(tmp_path) == []


def test_a_packed_answer_is_refused(site):
    site.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DatasetError, match="the server packs the file"):
        fetched(site)


def test_addresses_that_differ_in_their_query_are_two_files(site):
    other = f"{site.address}?part=2"
    first, second = fetch_all([site.address, other], Silent())
    assert first != second
    assert fetch_all([f"{other}&X-Amz-Signature=0123"], Silent()) == [second]


@pytest.mark.parametrize("path", ["", "..", "%00"])
def test_addresses_that_name_no_file(site, path):
    address = site.address.removesuffix("a.tar") + path
    if path == "%00":
        assert fetch_all([address], Silent())[0].read_bytes() == OLD
        return
    with pytest.raises(DatasetError, match="names no file"):
        fetch_all([address], Silent())


def _child(address: str, answers) -> None:
    try:
        answers.put(hashlib.sha256(fetch_all([address], Silent())[0].read_bytes()).hexdigest())
    except Exception as error:
        answers.put(repr(error))


def test_processes_do_not_take_each_others_halves(site):
    """One of them fetches it, all of them get it."""
    site.pause_s = 0.003
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_child, args=(site.address, answers)) for _ in range(6)]
    for child in children:
        child.start()
    found = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert found == [hashlib.sha256(OLD).hexdigest()] * 6


def test_whoever_holds_a_file_that_is_on_its_way_is_waited_for(site, tmp_path, monkeypatch):
    """And not for ever: one whose file does not grow is left alone, and the file fetched beside it."""
    monkeypatch.setattr(fetch, "GIVE_UP_S", 0.2)
    break_off(site, 100_000)
    partial = next(path for path in begun(tmp_path) if path.suffix == ".partial")
    told = []

    class Telling(Silent):
        def message(self, text: str) -> None:
            told.append(text)

    with partial.open("rb") as file:
        assert fetch.try_lock(file.fileno())
        assert fetch_all([site.address], Telling())[0].read_bytes() == OLD
        assert partial.exists()
    assert told == [f"{site.address} is being fetched by another process; waiting for it"]


def test_two_unpackers_with_one_process_id(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    target = tmp_path / "x"
    with atomic_file(target) as first:
        first.write_bytes(b"first")
        with atomic_file(target) as second:
            second.write_bytes(b"second")
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"first"
