"""A cache from elsewhere is data: whatever it holds, reading ends in values or in a FeatcacheError, soon, and harms nobody."""

import copy
import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from featcache.store.catalogue.entries import folder_entry
from featcache.store.catalogue.removal import remove_tree
from featcache.store.catalogue.summary import summarize
from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from featcache.store.convert.export import EXPORTERS, export_cache
from featcache.store.errors import FeatcacheError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.reading.reader import open_cache
from featcache.store.requests import record_request
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, fill_block, make_content, make_plan, write_cache
from support.forging import FEATURES, forge_manifest, outside, reseal, special

CASES = int(os.environ.get("FEATCACHE_TEST_FUZZ", "2000"))
FIRST = int(os.environ.get("FEATCACHE_TEST_FUZZ_FIRST", "0"))
"""Number of the first case: every case has random numbers of its own, so that one of them can be run again."""
# What a forged field may hold: wrong types, negative, overflowing, paths, deep and long values.
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 7, 128, 2**31, 2**47, 2**63, 2**200, 1.5, 1e300, 128.0, -0.0),
    *("", "x", "..", "../../etc/passwd", "/etc/passwd", "train/../..", "a" * 5000, "\0", "é", "\x1b[2J"),
    *([], [[]], [0], [-1], [2**40] * 4, {}, {"a": {}}, ["cls", "cls"], ["0"] * 9, [0.0, 128.0]),
    *("float32", "object", "bfloat16", "norm2", "final", "label", "NaN", "gzip"),
    json.loads("[" * 40 + "]" * 40),
)
MAX_EXTRA_BYTES = 500 * 2**20
# Chunks of one page, so that they are mapped as well.
PLAN = make_plan({"train": 130, "test": 3}, num_layers=2, width=8)
CONTENT = make_content(PLAN)

Undo = Callable[[], object]


def mutate(document, rng):
    """Change, remove, double or swap one to three values anywhere in a document."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        spot = document
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = spot[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                spot = inner
                continue
            action = rng.randrange(4)
            if action == 0 and isinstance(spot, dict):
                del spot[key]
            elif action == 1 and isinstance(spot, dict):
                spot[rng.choice(("..", "a/b", "", "train", "norm2", "extra"))] = copy.deepcopy(inner)
            elif action == 2:
                other = rng.choice(keys)
                spot[key], spot[other] = spot[other], spot[key]
            else:
                spot[key] = copy.deepcopy(rng.choice(VALUES))
            break


def restoring(*paths: Path) -> Undo:
    """Return what writes files back as they are now."""
    before = {path: path.read_bytes() for path in paths}
    return lambda: [path.write_bytes(data) for path, data in before.items()]


def forge_document(directory: Path, rng: random.Random) -> Undo:
    """Change a sealed document; the manifest keeps a key that fits, or not."""
    path = directory / rng.choice(("manifest.json",) * 8 + ("provenance.json", "request.json"))
    undo = restoring(path)
    if path.name == "manifest.json" and rng.random() < 0.5:
        forge_manifest(directory, lambda document: mutate(document, rng))
    else:
        document = read_sealed(path)
        mutate(document, rng)
        write_sealed(path, document)
    return undo


def forge_zarr(directory: Path, rng: random.Random) -> Undo:
    """Change the zarr.json of an array or of a group; the manifest vouches for it, or not."""
    node = rng.choice(
        ("train/norm2/", "test/final/", "train/label/", "train/sample_id/", "train/", "test/", "")
    )
    path = directory / FEATURES / f"{node}zarr.json"
    undo = restoring(path, directory / "manifest.json")
    document = json.loads(path.read_bytes())
    mutate(document, rng)
    path.write_text(json.dumps(document))
    if rng.random() < 0.8:
        reseal(directory, f"{node}zarr.json")
    return undo


def forge_content(directory: Path, rng: random.Random) -> Undo:
    """Change bytes of a chunk, for which the manifest vouches, or the length of any file."""
    name = rng.choice(("label/c.0", "label/c.1", "valid/c.1", "sample_id/c.0.0", "final/c.0.0.0.0"))
    path = directory / FEATURES / "train" / name
    undo = restoring(path, directory / "manifest.json")
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 5, 100))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    reseal(directory, f"train/{name}")
    if rng.random() < 0.2:
        path = rng.choice(sorted(directory.rglob("*.*")))
        if path.is_file():
            earlier = undo
            restore = restoring(path)
            os.truncate(path, rng.choice((0, 1, path.stat().st_size - 1, path.stat().st_size + 1, 2**33)))
            return lambda: (restore(), earlier())
    return undo


def forge_place(directory: Path, rng: random.Random) -> Undo:
    """Put a link, a pipe, a socket, a folder, something else or nothing in the place of a file or folder."""
    places = [*sorted(directory.rglob("*")), directory / "journal", directory / "request.json.partial"]
    path = rng.choice(places)
    away = outside(directory) / "away"
    was_there = os.path.lexists(path)
    if was_there:
        path.rename(away)
    what = rng.choice(("link", "link", "link", "pipe", "socket", "folder", "file", "other", "nothing"))
    if what == "link":
        target = rng.choice(
            (str(away), str(outside(directory) / "secret"), path.name, "/dev/zero", "..", "/")
        )
        path.symlink_to(target)
    elif what == "file":
        path.write_bytes(b"x" * rng.choice((0, 1, 4096)))
    elif what == "other":
        other = rng.choice(places)
        if other.is_file() and not other.is_relative_to(path):
            shutil.copy(other, path)
    elif what != "nothing":
        special(str(path.relative_to(directory)), what)(directory)

    def undo() -> None:
        if os.path.lexists(path):
            remove_tree(path)
        if was_there:
            away.rename(path)

    return undo


def forge_several(directory: Path, rng: random.Random) -> Undo:
    """Two of the others at once."""
    undos = [forge(directory, rng) for forge in (forge_zarr, forge_document)]
    return lambda: [undo() for undo in reversed(undos)]


FORGERIES = {
    "documents": forge_document,
    "zarr.json": forge_zarr,
    "content": forge_content,
    "places": forge_place,
    "several": forge_several,
}


def read_everything(directory: Path) -> None:
    """Read all that a cache holds; one way that fails does not spare the others."""
    cache = open_cache(directory, allow_partial=True)
    ways = [lambda: cache.provenance]
    for name in cache.inventory.splits:
        ways += [
            lambda name=name: cache[name].labels(),
            lambda name=name: cache[name].valid(),
            lambda name=name: cache[name].sample_ids(),
            lambda name=name: cache[name].load(cache[name].layers, cache[name].tokens),
            lambda name=name: gather(cache[name]),
        ]
    errors = []
    for way in ways:
        try:
            way()
        except FeatcacheError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def gather(split):
    return split.gather([0, split.num_samples - 1], split.layers, split.tokens)


def glance(directory: Path) -> None:
    """What `featcache ls` does."""
    entry = folder_entry(directory)
    if entry is not None:
        summarize(entry)
        assert entry.modified


def export(directory: Path, kind: str, target: Path) -> None:
    export_cache(open_cache(directory), kind, target)


def attempt(use: Callable[[], object]) -> bool:
    """Whether something is refused; any other error goes on."""
    try:
        use()
    except FeatcacheError:
        return True
    return False


def names_in(folder: Path) -> set[str]:
    return {f"{where}/{name}" for where, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A complete cache, and one of which a block is missing."""
    folder = tmp_path_factory.mktemp("hostile")
    write_cache(folder / "complete", PLAN, CONTENT)
    record_request(folder / "complete", {"model": "tiny"})
    with CacheWriter(folder / "unfinished", PLAN) as writer:
        for _ in range(2):
            block = writer.claim()
            fill_block(block, CONTENT, 32)
            writer.commit(block)
    return folder


@pytest.fixture
def cache(tmp_path) -> Path:
    """Where the forged cache lies; beside it is what nobody may touch."""
    directory = cache_folder(tmp_path / "root", PLAN)
    outside(directory).mkdir(parents=True)
    (outside(directory) / "secret").write_bytes(b"do not touch")
    return directory


def fuzz(original: Path, directory: Path, forge: Callable[[Path, random.Random], Undo], cases: int) -> int:
    """Forge a cache again and again and use it in every way; returns how often it was refused."""
    others, refused = all_files(outside(directory)), 0
    shutil.copytree(original, directory)
    for number in range(FIRST, FIRST + cases):
        rng = random.Random(number)
        undo = forge(directory, rng)
        before = names_in(directory.parent)
        try:
            for use in (read_everything, verify, glance):
                refused += attempt(partial(use, directory))
            if rng.random() < 0.1:
                target, kind = directory.parent / "export", rng.choice(sorted(EXPORTERS))
                attempt(partial(export, directory, kind, target))
                remove_tree(target)
            assert names_in(directory.parent) == before, "reading writes nothing"
            if rng.random() < 0.1:
                undo = lambda: (remove_tree(directory), shutil.copytree(original, directory))  # noqa: E731
                attempt(lambda: repair(verify(directory)))
                remove_tree(outside(directory) / "away")
        except BaseException as error:  # a time-out as well
            error.add_note(f"in case {number}")
            raise
        undo()
        assert all_files(outside(directory)) == others, f"case {number} touched what is not the cache's"
    return refused


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_caches(originals, cache, what):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(originals / "complete", cache, FORGERIES[what], CASES // 6) > CASES // 20
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert grown < MAX_EXTRA_BYTES


def test_forged_unfinished_caches(originals, cache):
    def forge(directory: Path, rng: random.Random) -> Undo:
        if rng.random() < 0.3:
            return forge_place(directory, rng)
        path = directory / "journal" / rng.choice(("plan.json", "plan.json", "train.00000.json"))
        undo, document = restoring(path), read_sealed(path)
        mutate(document, rng)
        write_sealed(path, document)
        return undo

    assert fuzz(originals / "unfinished", cache, forge, CASES // 6) > CASES // 20
