"""EXIF orientation: how images are turned, which caches answer, and that a changed orientation is another image."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import BatchLoader
from featcache.extraction.decoding.rgb import content_digest, to_rgb, turned_upright
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.reuse.division import Division
from featcache.extraction.run import extract
from featcache.extraction.running.pipeline import ImageInput
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.decode import decode, stored_orientation
from featcache.extraction.sources.pixels import FACTS
from featcache.extraction.sources.sequences import python_dataset
from featcache.recompute.run import RecomputeRequest, recompute
from featcache.store.errors import CacheError, DatasetError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.manifest import MANIFEST_FILE, BlockRecord, Manifest
from featcache.store.reading.reader import open_cache

from .test_freshness import MODEL, Told

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
ORIENTATION = 0x0112
FORMATS = {
    "JPEG": {"quality": 97, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100},
}


def stored_as(upright: Image.Image, orientation: int) -> Image.Image:
    """The pixels that a camera stores so that `orientation` shows them as `upright`, by the definition of the tag."""
    pixels = np.asarray(upright)
    # Orientations 5 to 8 store columns as rows; the others differ in which corner comes first.
    flips = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    rows, columns = flips[orientation]
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def encoded(image: Image.Image, orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif, **FORMATS[form])
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMATS)
def test_images_are_shown_as_the_camera_meant_in_every_format(form, orientation, tmp_path):
    photo = np.zeros((48, 80, 3), np.uint8)
    photo[:16], photo[:, :16], photo[24:40, 56:72] = (220, 20, 20), (20, 200, 20), (20, 20, 200)
    path = tmp_path / "photo"
    path.write_bytes(encoded(stored_as(Image.fromarray(photo), orientation), orientation, form))
    shown = turned_upright(to_rgb(decode(path, "photo")))
    assert shown.size == (80, 48)
    assert np.abs(np.asarray(shown).astype(int) - photo).mean() < 6
    # The header alone tells which images are turned; Pillow turns TIFF files by itself.
    assert stored_orientation(path) == (1 if form == "TIFF" else orientation)


def test_orientations_that_are_none_turn_nothing():
    for value in (0, 9, 255):
        image = decode(io.BytesIO(encoded(Image.new("RGB", (6, 4)), value, "JPEG")), "x")
        assert turned_upright(to_rgb(image)).size == (6, 4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def photos():
    pixels = np.random.default_rng(0)
    for name in "ab":
        for index in range(4):
            coarse = Image.fromarray(pixels.integers(0, 256, (7, 9, 3), np.uint8))
            yield f"{name}/{index}.png", coarse.resize((90, 70), Image.Resampling.BICUBIC), index * 2 + 1


def write_folder(root, orientations=True):
    """Eight photos, as they are stored in every second orientation, or upright."""
    for name, photo, orientation in photos():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        orientation = orientation if orientations else 1
        path.write_bytes(encoded(stored_as(photo, orientation), orientation, "PNG"))
    return root


@pytest.fixture
def run(tmp_path, weights):
    def extract_folder(folder, root="root", **options):
        told = Told()
        settings = {"precision": "fp32", "dtype": "float32", "workers": 0, "device": "cpu"}
        request = ExtractRequest(MODEL, f"imagefolder:{folder}", weights=weights, **settings | options)
        return extract(request, [tmp_path / root], reporter=told), told.lines

    return extract_folder


def features(result):
    cache = open_cache(result.path)
    return {split: cache[split].load(["0", "3", "final"], ["cls", "ap"]) for split in cache}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for split in ours:
        np.testing.assert_allclose(ours[split], theirs[split], atol=1e-5)


def test_a_new_cache_has_the_features_of_upright_images_and_digests_of_the_stored_ones(run, tmp_path):
    sideways, upright = write_folder(tmp_path / "d"), write_folder(tmp_path / "up" / "d", orientations=False)
    turned, lines = run(sideways)
    cache = open_cache(turned.path)
    assert any(line.endswith("; they are turned upright by their EXIF orientation first") for line in lines)
    assert cache.provenance["dataset"].endswith("turned upright by their EXIF orientation first")
    assert cache.spec.backbone.preprocessing["orientation"] == "exif"
    assert "6 images have an EXIF orientation and were turned upright" in turned.notes
    assert cache.provenance["images_of_last_run"]["turned"] == 6
    assert_same(features(turned), features(run(upright, "other")[0]))
    for split, reader in cache.items():
        stored = [content_digest(to_rgb(decode(sideways / name, name))) for name in reader.sample_ids()]
        assert [row.tobytes() for row in reader.content_digests()] == stored
        wanted = {name: orientation for name, _, orientation in photos()}
        assert cache.manifest.orientations(split).tolist() == [wanted[name] for name in reader.sample_ids()]


def test_images_as_stored_keep_the_spec_of_before_and_the_note_names_the_option(run, tmp_path):
    folder = write_folder(tmp_path / "d")
    plain, lines = run(folder, exif=False)
    assert not any("upright" in line for line in lines)
    spec = open_cache(plain.path).spec
    assert "orientation" not in spec.backbone.preprocessing
    assert not any(record.orientations for record in Manifest.read(plain.path).blocks)
    assert (
        "6 images have an EXIF orientation and were not turned (--exif makes a cache with images upright)"
        in plain.notes
    )
    # A cache of images as stored is an answer, and one line says so, at the first time and at later ones.
    for _ in range(2):
        again, lines = run(folder)
        assert (again.cached, again.key) == (True, plain.key)
        assert any("6 images carry an EXIF orientation" in line and "--exif makes" in line for line in lines)
    _, lines = run(folder, exif=False)
    assert not any("EXIF" in line for line in lines)
    # Where there are both, the one with images upright is the answer.
    turned, _ = run(folder, exif=True)
    assert turned.key != plain.key
    again, lines = run(folder)
    assert (again.cached, again.key) == (True, turned.key)
    assert not any("EXIF" in line for line in lines)
    assert run(folder, exif=False)[0].key == plain.key


def forget_what_was_observed(path):
    """Take the counts out of the provenance, as caches of before have it."""
    document = read_sealed(path / "provenance.json")
    del document["images_of_last_run"]
    write_sealed(path / "provenance.json", document)


@pytest.mark.parametrize("orientations", [True, False])
def test_headers_tell_what_the_provenance_of_an_early_cache_does_not(run, tmp_path, orientations):
    folder = write_folder(tmp_path / "d", orientations)
    early, _ = run(folder, exif=False)
    forget_what_was_observed(early.path)
    again, lines = run(folder)
    assert (again.cached, again.key) == (True, early.key)
    assert any("6 images carry an EXIF orientation" in line for line in lines) == orientations
    assert any("EXIF" in line for line in lines) == orientations


def test_a_cache_that_was_begun_with_images_as_stored_goes_on_so(run, tmp_path):
    folder = write_folder(tmp_path / "d")
    begun, _ = run(folder, exif=False)
    whole = features(begun)
    manifest = Manifest.read(begun.path)
    from featcache.store.checking.reopen import reopen

    reopen(begun.path, [manifest.blocks[0].block])
    (begun.path / "request.json").unlink()
    again, lines = run(folder)
    assert (again.cached, again.key) == (False, begun.key)
    assert any("was begun with images as stored" in line for line in lines)
    assert_same(features(again), whole)


def test_additions_repairs_and_recomputation_follow_the_cache(run, tmp_path, weights):
    folder = write_folder(tmp_path / "d")
    from featcache.store.checking.reopen import reopen

    for exif in (True, False):
        first, _ = run(folder, exif=exif)
        before = Manifest.read(first.path)
        added, _ = run(folder, exif=exif, taps=("attn",))
        assert (added.cached, added.key) == (False, first.key)
        request = RecomputeRequest(samples=8, dataset=f"imagefolder:{folder}", weights=weights, device="cpu")
        assert recompute(open_cache(first.path), request).largest_relative < 1e-5
        reopen(first.path, [before.blocks[0].block])
        run(folder, exif=exif)
        after = Manifest.read(first.path)
        assert [record.orientations for record in after.blocks] == [
            record.orientations for record in before.blocks
        ]
        assert any(record.orientations for record in after.blocks) == exif


def test_another_orientation_of_the_same_pixels_is_another_image(run, tmp_path):
    folder = write_folder(tmp_path / "d")
    first, _ = run(folder)
    plain, _ = run(folder, exif=False)
    path = folder / "a" / "1.png"
    orientation = next(orientation for name, _, orientation in photos() if name == "a/1.png")
    # The same size and pixels, so neither the listing nor the content digest tells.
    path.write_bytes(encoded(Image.open(path), 6 if orientation != 6 else 8, "PNG"))
    other, lines = run(folder)
    assert (other.cached, other.key != first.key) == (False, True)
    assert any("1 image is not the one" in line for line in lines)
    assert run(folder, exif=False)[0].key == plain.key


def test_nothing_is_added_for_an_image_that_is_turned_in_another_way(tmp_path):
    source = resolve_source(f"imagefolder:{write_folder(tmp_path)}")
    load = BatchLoader(source, lambda image: torch.zeros(3, 8, 8), 8, upright=True)
    rows = Rows("train", 0, 6)
    batch, samples = load(rows), source.splits["train"][:6]
    known = {"train": batch.content.numpy()}
    orientations = batch.facts[:, FACTS.index("turned")].clamp(min=1).numpy().astype(np.uint8)

    def check(**more):
        images = ImageInput(source, load, 8, 0, torch.device("cpu"), known_content=known, **more)
        images.check_content(rows, Division.whole(samples, batch))

    check()
    check(known_orientations={"train": orientations})
    with pytest.raises(
        DatasetError, match=f"image '{samples[2].id}' is not the one that the cache was made from"
    ):
        check(known_orientations={"train": np.where(np.arange(6) == 2, 2, orientations)})


def test_arrays_never_carry_the_field(weights, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), np.uint8)
    settings = {"precision": "fp32", "dtype": "float32", "workers": 0, "device": "cpu", "weights": weights}

    def key(items, root="root", **options):
        source = python_dataset(items, name="mine")
        request = ExtractRequest(MODEL, "mine", **settings, **options)
        return extract(request, [tmp_path / root], source=source).key

    arrays = [(image, index % 2) for index, image in enumerate(pixels)]
    images = [(Image.fromarray(image), label) for image, label in arrays]
    assert key(arrays) == key(arrays, exif=True) == key(arrays, exif=False)
    assert key(images, "other") != key(images, "other", exif=False) == key(arrays)


@pytest.mark.parametrize("orientations", ["12", "1" * 7 + "9", 11111111, ["1"] * 8, "1111111¹"])
def test_damaged_orientations_are_refused(run, tmp_path, orientations):
    first, _ = run(write_folder(tmp_path / "d"), exif=True)
    document = read_sealed(first.path / MANIFEST_FILE)
    document["blocks"][0]["orientations"] = orientations
    with pytest.raises(CacheError, match="field 'orientations' must be"):
        Manifest.from_dict(document, "x")
    record = Manifest.read(first.path).blocks[0]
    assert BlockRecord.from_dict(record.to_dict(), Manifest.read(first.path).inventory, "x") == record
