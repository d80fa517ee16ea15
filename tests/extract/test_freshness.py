"""Files that are exchanged, touched or copied under a cache: their content decides, and only where something moved."""

import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.extraction.sources.file_states import MAX_GROUPS, FileStates, containers_of
from featcache.store.catalogue import scan
from featcache.store.errors import DatasetError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.reading.reader import open_cache

MODEL = "timm:test_vit.r160_in1k"


class Told:
    """A reporter that keeps messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str, /) -> None:
        self.lines.append(text)

    def progress(self, title: str, unit: str, /):
        from featcache.store.progress import Silent

        return Silent().progress(title, unit)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def make_folder(root: Path, seed: int = 0, suffix: str = ".bmp") -> Path:
    pixels = np.random.default_rng(seed)
    for name in "ab":
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(4):
            image = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(root / name / f"{index}{suffix}")
    return root


@pytest.fixture
def run(tmp_path, weights):
    """Extract a folder; the result and what was said."""

    def extract_folder(folder: Path, dataset: str = "imagefolder", **options):
        told = Told()
        request = ExtractRequest(
            MODEL,
            f"{dataset}:{folder}",
            weights=weights,
            precision="fp32",
            workers=0,
            device="cpu",
            **options,
        )
        return extract(request, [tmp_path / "root"], reporter=told), told.lines

    return extract_folder


def digests(result) -> np.ndarray:
    cache = open_cache(result.path)
    return np.concatenate([cache[name].content_digests() for name in cache.inventory.splits])


def test_files_overwritten_with_the_same_size_are_noticed_and_extracted_under_another_key(tmp_path, run):
    folder = make_folder(tmp_path / "d")
    first, _ = run(folder)
    make_folder(folder, seed=1)
    second, lines = run(folder)
    assert not second.cached
    assert second.key != first.key
    assert not (digests(first) == digests(second)).all(1).any()
    assert any("8 images are not those that" in line for line in lines)
    # Both are found again at once, without any image being compared.
    again, lines = run(folder)
    assert (again.cached, again.key) == (True, second.key)
    assert not any("comparing" in line for line in lines)
    assert len(list(scan([tmp_path / "root"]))) == 2


def test_a_single_file_that_is_exchanged_is_the_only_one_that_is_compared(tmp_path, run):
    folder = make_folder(tmp_path / "d")
    first, _ = run(folder)
    content = (folder / "b" / "3.bmp").read_bytes()
    (folder / "a" / "0.bmp").write_bytes(content)
    second, lines = run(folder)
    assert second.key != first.key
    assert any(line.startswith("1 images of ") and "comparing" in line for line in lines)
    assert any("1 image is not the one that" in line and "a/0.bmp" in line for line in lines)


def test_files_that_were_touched_or_copied_are_compared_and_not_extracted_again(tmp_path, run):
    folder = make_folder(tmp_path / "d")
    first, _ = run(folder)
    for path in folder.rglob("*.bmp"):
        os.utime(path)
    touched, lines = run(folder)
    assert (touched.cached, touched.key) == (True, first.key)
    assert any("comparing" in line for line in lines)
    _, lines = run(folder)
    assert not any("comparing" in line for line in lines)
    shutil.copytree(folder, tmp_path / "other" / "d")
    copied, _ = run(tmp_path / "other" / "d")
    assert (copied.cached, copied.key) == (True, first.key)
    _, lines = run(folder)  # both places are remembered
    assert not any("comparing" in line for line in lines)


def test_a_link_to_another_version_of_the_folder_is_noticed_although_no_file_is_new(tmp_path, run):
    new = make_folder(tmp_path / "v2", seed=1)
    old = make_folder(tmp_path / "v1")
    link = tmp_path / "d"
    link.symlink_to(old)
    first, _ = run(link)
    link.unlink()
    link.symlink_to(new)
    second, _ = run(link)
    assert second.key != first.key


def forget_files(path: Path, **provenance: object) -> None:
    """Make a cache one of an earlier version, which kept no states of files."""
    request = read_sealed(path / "request.json")
    write_sealed(path / "request.json", {"requests": request["requests"]})
    document = read_sealed(path / "provenance.json")
    document.pop("corrections", None)
    write_sealed(path / "provenance.json", {**document, **provenance})


def test_of_a_cache_of_an_earlier_version_only_files_that_are_newer_are_compared(tmp_path, run):
    folder = make_folder(tmp_path / "d")
    first, _ = run(folder)
    forget_files(first.path, started_at=time.time())
    again, lines = run(folder)
    assert again.cached
    assert not any("comparing" in line for line in lines)
    forget_files(first.path)
    make_folder(folder, seed=1)
    assert not run(folder)[0].cached


@pytest.mark.parametrize(("suffix", "compared"), [(".bmp", True), (".png", False)])
def test_of_a_cache_from_elsewhere_files_are_compared_whose_size_tells_nothing(
    tmp_path, run, suffix, compared
):
    folder = make_folder(tmp_path / "d", suffix=suffix)
    first, _ = run(folder)
    forget_files(first.path, host="elsewhere")
    again, lines = run(folder)
    assert again.cached
    assert any("comparing" in line for line in lines) is compared


def test_a_cache_of_tiff_files_of_an_earlier_version_is_compared(tmp_path, run):
    """Integers of 32 bits were taken for 16 bits: such a cache is no answer."""
    folder = make_folder(tmp_path / "d", suffix=".tif")
    first, _ = run(folder)
    forget_files(first.path)
    assert run(folder)[0].cached
    forget_files(first.path)
    size = (folder / "a" / "0.tif").stat().st_size
    Image.fromarray(np.zeros((1, 1), np.int32)).save(folder / "a" / "0.tif")
    with open(folder / "a" / "0.tif", "ab") as file:
        file.truncate(size)
    with pytest.raises(DatasetError, match=r"a/0\.tif': its pixels are int32"):
        run(folder)


def test_a_cache_of_an_earlier_version_of_shards_with_images_of_32_bits_is_no_answer(tmp_path, run):
    def write(values: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "TIFF")
        content = buffer.getvalue().ljust(1000, b"\0")
        for split in ("train", "test"):
            (tmp_path / "shards" / split).mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as shard:
                for number in range(4):
                    for suffix, stored in ((".tif", content), (".cls", b"%d" % (number % 2))):
                        member = tarfile.TarInfo(f"{number}{suffix}")
                        member.size = len(stored)
                        shard.addfile(member, io.BytesIO(stored))

    write(np.zeros((8, 8), np.uint16))
    first, _ = run(tmp_path / "shards", "wds")
    forget_files(first.path)
    assert run(tmp_path / "shards", "wds")[0].cached
    write(np.zeros((8, 4), np.int32))
    forget_files(first.path, started_at=time.time() + 60)  # made from these, by what read them as 16 bits
    with pytest.raises(DatasetError, match="its pixels are int32"):
        run(tmp_path / "shards", "wds")


def test_an_unfinished_run_does_not_mix_images_of_two_versions(tmp_path, run):
    folder = make_folder(tmp_path / "d")
    good = (folder / "b" / "3.bmp").read_bytes()
    (folder / "b" / "3.bmp").write_bytes(bytes(len(good)))
    with pytest.raises(DatasetError, match="does not decode"):
        run(folder, batch_size=2)
    make_folder(folder, seed=1)
    second, _ = run(folder, batch_size=2)
    assert second.skipped == 0
    fresh = make_folder(tmp_path / "e" / "d", seed=1)
    from featcache.extraction.decoding.rgb import content_digest, rgb_image
    from featcache.extraction.sources import resolve_source

    source = resolve_source(f"imagefolder:{fresh}")
    wanted = [
        content_digest(rgb_image(source, split, row))
        for split in source.splits
        for row in range(len(source.splits[split]))
    ]
    assert [row.tobytes() for row in digests(second)] == wanted


def test_shards_that_are_exchanged_are_noticed(tmp_path, run):
    def write(seed: int) -> None:
        folder = make_folder(tmp_path / f"images-{seed}", seed)
        for split in ("train", "test"):
            (tmp_path / "shards" / split).mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as shard:
                for label, name in enumerate("ab"):
                    for index in range(2):
                        shard.add(folder / name / f"{index}.bmp", f"{name}{index}.bmp")
                        (tmp_path / "cls").write_text(str(label))
                        shard.add(tmp_path / "cls", f"{name}{index}.cls")

    write(0)
    first, _ = run(tmp_path / "shards", "wds")
    assert run(tmp_path / "shards", "wds")[0].cached
    write(1)
    second, _ = run(tmp_path / "shards", "wds")
    assert second.key != first.key
    write(1)  # the same content anew
    assert run(tmp_path / "shards", "wds")[0].key == second.key


def test_fingerprints_are_bounded_and_tell_where_something_moved():
    states = np.arange(3 * 10_000, dtype=np.int64).reshape(-1, 3)
    before = FileStates(states, True)
    assert len(before.fingerprints) == MAX_GROUPS
    moved = states.copy()
    moved[4321, 2] += 1
    mask = FileStates(moved, True).differing(before.fingerprints)
    assert mask[4321]
    assert mask.sum() <= -(-10_000 // MAX_GROUPS)
    assert FileStates(states[:-1], True).differing(before.fingerprints[:-1]).all()
    assert json.dumps(before.fingerprints)


def test_files_that_are_not_there_have_a_state_too(tmp_path):
    (tmp_path / "x").write_bytes(b"123")
    found = FileStates.of([tmp_path / "x", tmp_path / "y"], True)
    assert found.states[0, 0] == 3
    assert not found.states[1].any()


def test_the_files_of_a_place_are_found(tmp_path):
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "folder").mkdir()
    assert containers_of(tmp_path / "a") == [tmp_path / "a"]
    assert containers_of(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert containers_of(tmp_path / "gone") == []


def test_an_array_that_is_too_large_to_be_read_for_its_identity_is_compared_when_its_file_moves(
    tmp_path, run, monkeypatch
):
    """Of a large array some rows alone go into the identity: a change between them shows in the file's times."""
    from featcache.extraction.sources import arrays

    monkeypatch.setattr(arrays, "SMALL_BYTES", 0)
    monkeypatch.setattr(arrays, "SAMPLED_ROWS", 2)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    labels = np.arange(12) % 2
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    first, _ = run(tmp_path / "x.npz", "npz")
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    assert run(tmp_path / "x.npz", "npz")[0].key == first.key
    images[5] = 255 - images[5]
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    assert run(tmp_path / "x.npz", "npz")[0].key != first.key


def test_weights_that_are_exchanged_under_the_same_size_and_time_of_content_are_noticed(tmp_path, weights):
    folder, own = make_folder(tmp_path / "d"), tmp_path / "w.safetensors"
    shutil.copy(weights, own)
    request = ExtractRequest(
        MODEL, f"imagefolder:{folder}", weights=own, precision="fp32", workers=0, device="cpu"
    )
    first = extract(request, [tmp_path / "root"])
    before = own.stat()
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file({name: tensor + 0.01 for name, tensor in state.items()}, own)
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert own.stat().st_size == before.st_size
    assert extract(request, [tmp_path / "root"]).key != first.key
