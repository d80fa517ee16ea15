"""The set of broken caches: every way into a cache refuses each of them in the words it should, and harms nobody."""

import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from featcache.store.catalogue.removal import remove_tree
from featcache.store.catalogue.stale_files import find_stale_files
from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheError, RequestError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.journal import progress_path
from featcache.store.reading.reader import open_cache, require_files
from featcache.store.requests import record_request
from featcache.store.writing.claims import Claims
from featcache.store.writing.writer import CacheWriter
from support.broken_caches import BROKEN_CACHES
from support.caches import all_files, cache_folder, fill_block, make_content, make_plan, write_cache
from support.forging import link, moved_out, outside, special
from support.sparse import write_sparse_cache

# Chunks of one page, so that they are mapped as well.
PLAN = make_plan({"train": 130, "test": 3}, num_layers=2, width=8)
CONTENT = make_content(PLAN)
MAX_EXTRA_BYTES = 2**30
SECRET = b"do not touch"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("broken") / "cache"
    write_cache(directory, PLAN, CONTENT)
    record_request(directory, {"model": "tiny"})
    return directory


@pytest.fixture
def cache(original, tmp_path) -> Path:
    """A valid cache under a root, and beside it the folder of somebody else."""
    directory = cache_folder(tmp_path / "root", PLAN)
    shutil.copytree(original, directory)
    outside(directory).mkdir()
    (outside(directory) / "secret").write_bytes(SECRET)
    return directory


@pytest.fixture
def bounded_memory():
    """What needs more than a gigabyte fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MAX_EXTRA_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_everything(directory: Path) -> None:
    """Read all that a cache holds, in every way; each is to fail alike."""
    ways = [
        lambda cache: cache.provenance,
        lambda cache: [cache[name].labels() for name in cache.inventory.splits],
        lambda cache: [cache[name].valid() for name in cache.inventory.splits],
        lambda cache: [cache[name].sample_ids() for name in cache.inventory.splits],
        lambda cache: [
            cache[name].load(cache[name].layers, cache[name].tokens) for name in cache.inventory.splits
        ],
        lambda cache: [gather(cache[name], "auto") for name in cache.inventory.splits],
        lambda cache: [gather(cache[name], "read") for name in cache.inventory.splits],
    ]
    errors = []
    for way in ways:
        try:
            way(open_cache(directory))
        except CacheError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def gather(split, method):
    return split.gather([0, split.num_samples - 1], split.layers, split.tokens, method=method)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Runs a command; returns its exit status and what it said."""
    from featcache.cli import main

    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "root"))

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["featcache", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert all(line.isprintable() for line in said.splitlines()), "nothing that a terminal would obey"
        return status, said

    return run


@pytest.mark.timeout(60)  # a pipe without a writer would be waited for for ever
@pytest.mark.parametrize("name", BROKEN_CACHES)
def test_broken_cache(name, cache, tmp_path, cli, bounded_memory):
    broken = BROKEN_CACHES[name]
    broken.change(cache)
    others, folders = all_files(outside(cache)), folders_of(tmp_path)

    for refused, use in (("open", open_cache), ("read provenance", read_everything)):
        if broken.refused == "open" or broken.refused in refused:
            with pytest.raises(CacheError) as caught:
                use(cache)
            assert broken.message in str(caught.value)
            assert str(cache) in str(caught.value), "the message says where"
        else:
            use(cache)
    damages = verify(cache).damages
    assert any((broken.found or broken.message) in damage.reason for damage in damages)

    for number, kind in enumerate(("npy", "h5", "safetensors")):
        status, said = cli("export", cache, "--to", kind, "--out", tmp_path / f"export-{number}")
        # Not every format takes provenance along.
        assert status in {"verify": (0,), "provenance": (0, 1)}.get(broken.refused, (1, 2)), said
        remove_tree(tmp_path / f"export-{number}")
    assert cli("ls")[0] == 0
    assert cli("info", cache)[0] in (0, 1, 2)
    assert cli("verify", cache)[0] in (1, 2)
    assert folders_of(tmp_path) == folders, "reading writes nothing"
    assert cli("verify", cache, "--repair")[0] in (0, 1, 2)
    assert all_files(outside(cache)) == others, "nothing outside was touched"


# Memory of one's own: what resource says of a child counts its parent's.
COSTS = """
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from featcache.store.reading.reader import open_cache
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
try:
    open_cache(sys.argv[1])
except ValueError as error:
    assert "'digest' does not match the content" in str(error)
    print(peak() - before)
"""


@pytest.mark.parametrize(
    "document",
    [
        b"{" + b",".join(b'"%d":1' % number for number in range(2**21 - 2)) + b"}",
        '{"a":"😀'.encode() + b"a" * (60 * 2**20) + b'"}',
    ],
    ids=["fields", "text"],
)
def test_the_worst_document_costs_less_than_a_gigabyte(tmp_path, document):
    (tmp_path / "manifest.json").write_bytes(document)
    run = subprocess.run(
        [sys.executable, "-c", COSTS, str(tmp_path)], check=True, capture_output=True, timeout=60
    )
    assert int(run.stdout) < MAX_EXTRA_BYTES


def test_a_cache_that_is_a_link_is_as_good_as_its_target(cache, tmp_path, cli):
    target = tmp_path / "another disk" / cache.name
    target.parent.mkdir()
    cache.rename(target)
    cache.symlink_to(target)
    read_everything(cache)
    assert verify(cache).intact
    assert cli("info", cache)[0] == 0
    assert cache.name.rpartition("-")[2] in cli("ls")[1]


def test_an_unfinished_cache_whose_journal_is_elsewhere(tmp_path):
    directory = tmp_path / "cache"
    outside(directory).mkdir()
    with CacheWriter(directory, PLAN) as writer:
        block = writer.claim()
        fill_block(block, CONTENT, 32)
        writer.commit(block)
    moved_out("journal")(directory)
    before = all_files(tmp_path)
    for use in (lambda: open_cache(directory, allow_partial=True), lambda: repair(verify(directory))):
        with pytest.raises(CacheError, match="a link; a cache holds its files itself"):
            use()
    assert all_files(tmp_path) == before


@pytest.mark.parametrize(
    "change", [link("journal/setup.claim", "../../outside/secret"), special("journal/plan.json", "pipe")]
)
def test_no_repair_by_way_of_a_strange_journal(cache, change):
    (cache / "journal").mkdir()
    change(cache)
    (cache / "request.json").write_bytes(b"damaged")
    os.utime(outside(cache) / "secret", (0, 0))  # no live process holds it
    with pytest.raises(CacheError, match=r"journal/.*; move it away and run the command again"):
        repair(verify(cache))
    assert (outside(cache) / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("name", ["journal", "features.zarr/train/label"])
def test_no_repair_behind_a_link(cache, name):
    """It would remove the plan and the records of a journal, or damaged chunks."""
    for file in ("plan.json", "c.0", "zarr.json"):
        (outside(cache) / file).write_bytes(SECRET)
    if (cache / name).exists():
        shutil.rmtree(cache / name)
    (cache / name).symlink_to(outside(cache))
    (cache / "provenance.json").write_bytes(b"damaged")
    others = all_files(outside(cache))
    with pytest.raises(CacheError, match=r"a link; .*; remove the link and run the command again"):
        repair(verify(cache))
    assert all_files(outside(cache)) == others


def test_leftovers_are_not_looked_for_behind_links(cache):
    (outside(cache) / "final").mkdir()
    (outside(cache) / "final" / "thesis.partial").write_bytes(SECRET)
    os.utime(outside(cache) / "final" / "thesis.partial", (0, 0))
    shutil.rmtree(cache / "features.zarr/train")
    (cache / "features.zarr/train").symlink_to(outside(cache))
    assert find_stale_files(cache.parents[1], older_than_days=0, now=time.time() + 10**6) == []


def test_writing_does_not_follow_a_link_under_the_temporary_name(cache):
    (cache / "request.json.partial").symlink_to(outside(cache) / "secret")
    record_request(cache, {"model": "other"})
    assert (outside(cache) / "secret").read_bytes() == SECRET
    assert {"model": "other"} in read_sealed(cache / "request.json")["requests"]


def test_an_honest_cache_larger_than_memory_says_what_to_do(tmp_path, bounded_memory):
    plan = make_plan({"train": 2**20}, num_layers=1, width=2**20)
    write_sparse_cache(tmp_path, plan, layers=("final",))
    with pytest.raises(RequestError, match=r"\[1048576, 1, 2, 1048576\] do not fit in memory; ask for fewer"):
        open_cache(tmp_path)["train"].load(["final"], ["cls", "ap"])


def test_a_claim_is_not_taken_over_through_a_link(cache):
    (cache / "journal").mkdir()
    (cache / "journal/setup.claim").symlink_to(outside(cache) / "secret")
    os.utime(outside(cache) / "secret", (0, 0))
    claims = Claims(cache / "journal")
    with closing(claims), suppress(CacheError):
        claims.acquire("setup")
    assert (outside(cache) / "secret").read_bytes() == SECRET


def test_a_link_to_a_chunk_is_no_chunk(cache):
    moved_out("features.zarr/train/label/c.0")(cache)
    with pytest.raises(CacheError, match="a link"):
        require_files(open_cache(cache))


def test_an_extraction_does_not_follow_the_token_of_a_checkpoint(tmp_path):
    with CacheWriter(tmp_path, PLAN) as writer:
        block = writer.claim()
        block.append({name: values[:32] for name, values in CONTENT["train"].items()})
        block.checkpoint()
        progress = progress_path(tmp_path, block.block)
    write_sealed(progress, {**read_sealed(progress), "token": "x/../../../outside/y"})
    with CacheWriter(tmp_path, PLAN) as writer:
        assert writer.claim().rows == 0


def folders_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
