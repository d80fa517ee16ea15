"""verify finds a change of any byte anywhere and says where; repair leaves a cache that ends up as it was."""

import os
import shutil
from pathlib import Path

import pytest

from featcache.store.checking.damage import FileRole
from featcache.store.checking.documents import document_damages
from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheBusyError, CacheError, CacheNotFoundError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.reading.reader import open_cache
from featcache.store.requests import record_request
from featcache.store.writing.claims import Claims
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, flip, make_content, make_plan, write_blocks, write_cache

PLAN = make_plan()
CONTENT = make_content(PLAN)
CHUNK = "features.zarr/train/norm2/c.1.2.0.0"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("verify") / "cache"
    write_cache(directory, PLAN, CONTENT)
    record_request(directory, {"model": "tiny"})
    return directory


@pytest.fixture
def cache(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "cache"))


def paths(found) -> list[str]:
    return [damage.location.path for damage in found.damages]


def rewrite(directory: Path) -> None:
    """What the next `featcache extract` of the same request does."""
    with CacheWriter(directory, PLAN) as writer:
        write_blocks(writer, CONTENT)
        writer.finish({"model_names": ["tiny"], "dataset_names": ["made"], "completed_at": 1.0}, "# card\n")
    record_request(directory, {"model": "tiny"})


def test_an_untouched_cache_is_intact(original):
    before = all_files(original)
    found = verify(original)
    assert found.intact
    assert (found.damages, found.missing_blocks) == ([], [])
    assert (found.files, found.num_bytes) == (len(before), sum(map(len, before.values())))
    assert all_files(original) == before, "nothing is written"


def test_a_flipped_bit_in_any_file_is_found_and_placed(cache):
    chunks = 0
    for index, (name, data) in enumerate(all_files(cache).items()):
        path = cache / name
        for bit in (0, 8 * len(data) - 1, (7919 * index) % (8 * len(data))):
            flip(path, bit)
            found = verify(cache, threads=1)
            path.write_bytes(data)
            assert paths(found) == [name], (name, bit)
        (damage,) = found.damages
        if "/c." not in name:
            assert damage.location.block is None
            continue
        # The place, worked out from the file's name: c.<block>.<layer>...
        chunks += 1
        _, split, array, chunk = name.split("/")
        block, *rest = (int(part) for part in chunk.split(".")[1:])
        start = block * 128
        layer = {"norm2": lambda rest=rest: str(rest[0]), "final": lambda: "final"}.get(array, lambda: None)()
        document = damage.to_dict()
        assert (document["split"], document["array"], document["layer"]) == (split, array, layer)
        assert document["rows"] == [start, min(start + 128, {"train": 300, "test": 90}[split])]
        assert damage.reason == "content does not match its SHA-256"
    assert chunks == 4 * (3 + 1 + 3), "four blocks of three layers, final, and three columns"


def test_every_bit_of_the_documents_counts(cache):
    """All bits of the small ones, so that no form of writing the same content passes either."""
    for name in ("provenance.json", "request.json", "README.md"):
        data = (cache / name).read_bytes()
        for bit in range(8 * len(data)):
            flip(cache / name, bit)
            assert name in {damage.location.path for damage in document_damages(cache)}, (name, bit)
            (cache / name).write_bytes(data)
    # The same content in other bytes, which the digest of the content cannot see.
    (cache / "provenance.json").write_bytes((cache / "provenance.json").read_bytes().replace(b"\n", b"\r\n"))
    (damage,) = verify(cache).damages
    assert (damage.location.role, damage.reason) == (
        FileRole.FORM,
        "the content holds, but its bytes are not as written",
    )


def test_truncated_missing_swapped_and_strange_files(cache):
    features = cache / "features.zarr"
    other = features / "train/norm2/c.0.2.0.0"
    data, other_data = (cache / CHUNK).read_bytes(), other.read_bytes()

    (cache / CHUNK).write_bytes(data[:-1])
    assert [str(d) for d in verify(cache).damages] == [
        f"{CHUNK} (train rows 128-256, layer 2): {len(data) - 1} bytes, must be {len(data)}"
    ]
    (cache / CHUNK).unlink()
    assert [d.reason for d in verify(cache).damages] == ["missing"]
    os.mkfifo(cache / CHUNK)  # opening it would wait for ever
    assert [d.reason for d in verify(cache).damages] == ["not a regular file"]
    (cache / CHUNK).unlink()
    (cache / CHUNK).write_bytes(other_data)
    other.write_bytes(data)
    assert {d.location.path: d.reason for d in verify(cache).damages} == {
        CHUNK: "content does not match its SHA-256; it holds the content of features.zarr/train/norm2/c.0.2.0.0",
        "features.zarr/train/norm2/c.0.2.0.0": f"content does not match its SHA-256; it holds the content of {CHUNK}",
    }
    (cache / CHUNK).write_bytes(data)
    other.write_bytes(other_data)

    (features / "train/norm2/c.3.0.0.0").write_bytes(data)
    (features / "notes").mkdir()
    (features / "notes/a.txt").write_text("not looked at")
    (features / "test/label/c.0.0123456789ab.partial").write_text("")
    (cache / "journal").mkdir()
    (cache / "README.md").unlink()
    assert {(d.location.path, d.location.role) for d in verify(cache).damages} == {
        ("features.zarr/train/norm2/c.3.0.0.0", FileRole.UNEXPECTED),
        ("features.zarr/notes", FileRole.UNEXPECTED),
        ("features.zarr/test/label/c.0.0123456789ab.partial", FileRole.STALE),
        ("journal", FileRole.STALE),
        ("README.md", FileRole.DOCUMENT),
    }


def test_metadata_that_were_sealed_wrong_do_not_pass(cache):
    """The digests agree with a forged manifest; the metadata do not agree with the inventory."""
    for path, old, new, reason in (
        ("train/norm2/zarr.json", b'"2"', b'"7"', "field 'attributes' is"),
        ("train/norm2/zarr.json", b'"cls"', b'"ap2"', "field 'attributes' is"),
        ("train/zarr.json", b"300", b"299", "copy of 'final': field 'shape' is [299, 1, 2, 4]"),
        ("zarr.json", b'"NaN"', b'"0.0"', "copy of 'test/final': field 'fill_value' is '0.0'"),
        ("test/zarr.json", b'"group"', b'"array"', "field 'node_type' is 'array', the manifest says 'group'"),
    ):
        file = cache / "features.zarr" / path
        before, manifest = file.read_bytes(), (cache / "manifest.json").read_bytes()
        assert old in before
        file.write_bytes(before.replace(old, new))
        reseal(cache, path)
        (damage,) = verify(cache).damages
        assert damage.location.path == f"features.zarr/{path}"
        assert damage.reason.startswith(reason)
        file.write_bytes(before)
        (cache / "manifest.json").write_bytes(manifest)


def reseal(cache: Path, *forged: str) -> None:
    """Make the manifest vouch for changed files."""
    from featcache.store.files import sha256_file

    document = read_sealed(cache / "manifest.json")
    tables = [document["metadata"], *(block["files"] for block in document["blocks"])]
    for path in forged:
        for table in tables:
            if path in table:
                file = cache / "features.zarr" / path
                table[path] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_sealed(cache / "manifest.json", document)


def test_paths_of_a_forged_manifest_are_not_followed(cache):
    document = read_sealed(cache / "manifest.json")
    document["metadata"]["../../secret"] = {"bytes": 1, "sha256": "0" * 64}
    write_sealed(cache / "manifest.json", document)
    (damage,) = verify(cache).damages
    assert str(damage) == "manifest.json: field 'metadata' does not fit the inventory at '../../secret'"


def test_a_cache_in_the_folder_of_another_is_found(cache):
    renamed = cache.rename(cache.with_name("tiny-0123456789ab"))
    found = verify(renamed)
    assert [str(damage) for damage in found.damages] == [
        f"tiny-0123456789ab: the cache has the key {PLAN.spec.key}; rename the folder"
    ]
    assert found.remedy == "move away what does not belong there; the data are intact"


def test_an_incomplete_cache_is_checked_as_far_as_it_goes(tmp_path):
    with CacheWriter(tmp_path, PLAN) as writer:
        for _ in range(2):
            block = writer.claim()
            rows = slice(block.block.start, block.block.stop)
            block.append({name: values[rows] for name, values in CONTENT[block.block.split].items()})
            writer.commit(block)
    found = verify(tmp_path)
    assert (found.complete, found.intact, found.damages) == (False, False, [])
    assert [(block.split, block.index) for block in found.missing_blocks] == [("train", 2), ("test", 0)]
    flip(tmp_path / CHUNK, 77)
    flip(tmp_path / "features.zarr/test/final/zarr.json", 8)
    found = verify(tmp_path)
    assert paths(found) == [CHUNK, "features.zarr/test/final/zarr.json"]
    done = repair(found)
    assert sorted((block.split, block.index) for block in done.dropped) == [
        ("test", 0),
        ("train", 1),
        ("train", 2),
    ]
    assert verify(tmp_path).damages == []
    rewrite(tmp_path)
    assert verify(tmp_path).intact
    with pytest.raises(CacheNotFoundError):
        verify(tmp_path / "nothing")


DAMAGED = (CHUNK, "features.zarr/test/label/c.0", "features.zarr/train/zarr.json", "provenance.json")


def test_repair_then_rewrite_gives_the_same_bytes(cache, original):
    for name in (*DAMAGED, "request.json", "README.md"):
        flip(cache / name, 77)
    (cache / "features.zarr/test/label/c.0.0123456789ab.partial").write_text("")
    found = verify(cache)
    assert found.manifest is not None
    done = repair(found)
    assert not done.complete
    assert [(block.split, block.index) for block in done.dropped] == [("train", 1), ("test", 0)]
    assert done.samples == 128 + 90
    partial = open_cache(cache, allow_partial=True)
    assert [(b.block.split, b.block.index) for b in partial.manifest.blocks] == [("train", 0), ("train", 2)]
    assert verify(cache).damages == []
    rewrite(cache)
    assert all_files(cache) == all_files(original)
    assert verify(cache).intact


def test_what_needs_no_extraction_leaves_the_cache_complete(cache, original):
    flip(cache / "request.json", 77)
    (cache / "provenance.json").write_bytes((cache / "provenance.json").read_bytes() + b"\n")
    (cache / "journal").mkdir()
    (cache / "stranger").write_text("mine")
    done = repair(verify(cache))
    assert (done.complete, done.whole, done.unexpected_files) == (True, False, ["stranger"])
    (cache / "stranger").unlink()
    assert verify(cache).intact
    record_request(cache, {"model": "tiny"})
    assert all_files(cache) == all_files(original)


def test_a_repair_killed_at_any_step_is_valid_and_can_be_repeated(original, tmp_path, monkeypatch):
    """Every change of the file system on the way may be the last one."""
    whole, states = all_files(original), set()
    for step in range(1000):
        cache = Path(shutil.copytree(original, tmp_path / str(step)))
        for name in DAMAGED:
            flip(cache / name, 77)
        found = verify(cache, threads=1)
        with monkeypatch.context() as patch:
            killed = _kill_at(step, patch)
            try:
                repair(found)
            except _Killed:
                pass
            else:
                assert not killed
        complete = (cache / "manifest.json").exists()
        states.add(complete)
        again = verify(cache, threads=1)
        if complete:
            made_again = {"features.zarr/train/zarr.json"}
            still = set(DAMAGED) - made_again
            assert still <= set(paths(again)), "still the damaged one, and not taken for anything else"
            repair(again)
        rewrite(cache)
        assert all_files(cache) == whole
        if not killed:
            break
        shutil.rmtree(cache)
    assert step >= 9, "the steps of a repair, one by one"
    assert states == {True, False}


class _Killed(BaseException):
    pass


def _kill_at(step: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the `step`-th change of a file name, counted from 0, end everything; returns whether it came to that."""
    count, killed = iter(range(10**6)), []
    for name in ("unlink", "replace", "mkdir"):
        original = getattr(Path, name)

        def dying(self, *args, _original=original, **options):
            # Claims are given back by a live process only; a dead one's count for nothing.
            if ".claim" not in self.name and next(count) == step:
                killed.append(str(self))
                raise _Killed
            return _original(self, *args, **options)

        patch.setattr(Path, name, dying)
    return killed


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(cache):
    for name in (CHUNK, "request.json"):
        (cache / name).unlink()
        (cache / name).mkdir()
    before = all_files(cache)
    found = verify(cache)
    assert [damage.reason for damage in found.damages] == ["not a regular file"] * 2
    with pytest.raises(CacheError, match="is a folder, where a file must be; move it away"):
        repair(found)
    assert all_files(cache) == before


def test_a_damaged_manifest_cannot_be_repaired_and_says_what_to_do(cache):
    flip(cache / "manifest.json", 777)
    before = all_files(cache)
    with pytest.raises(
        CacheError, match=r"cannot be repaired: manifest\.json: .*; remove the folder and extract again"
    ):
        repair(verify(cache))
    assert all_files(cache) == before


def test_no_repair_while_somebody_is_at_work_or_after_a_change(cache):
    flip(cache / CHUNK, 77)
    found = verify(cache)
    (cache / "journal").mkdir()
    claims = Claims(cache / "journal")
    assert claims.acquire("train.00000")
    with pytest.raises(CacheBusyError, match="another process is writing this cache"):
        repair(found)
    claims.close()
    repair(found)
    with pytest.raises(CacheBusyError, match="has changed since it was verified"):
        repair(found)


def test_repair_leaves_what_only_looks_like_ours(cache):
    notes = ("mine.partial", "features.zarr/test/label/mine.partial", "journal/notes.json")
    (cache / "journal").mkdir()
    for name in notes:
        (cache / name).write_text("mine")
    flip(cache / "features.zarr/test/label/c.0", 77)
    left = repair(verify(cache))
    assert sorted(left.unexpected_files) == sorted(notes[:2])
    assert [(cache / name).read_text() for name in notes] == ["mine"] * 3
