"""From images to the bytes of a cache: stored types, what stops a run, blocks, and that a stopped run loses nothing."""

from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.extract.device import forward_context
from featcache.extract.pipeline import FeatureExtractor, run_blocks, sample_columns
from featcache.extract.sources import ImageFolder
from featcache.extract.sources.base import Sample
from featcache.extract.taps import Taps
from featcache.store.errors import BackboneError, DatasetError
from featcache.store.inventory import Block, Inventory
from featcache.store.journal import Plan
from featcache.store.layers import TOKEN_KINDS
from featcache.store.planning import plan_split
from featcache.store.reading.reader import as_float32, open_cache
from featcache.store.spec import CacheSpec
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files

from .tiny import LAYERS, WIDTH, clip_vit, noise, timm_vit, to_tensor

# Python 3.12 and later warn where a process with threads forks, as torch's loader does.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

CPU = torch.device("cpu")
LAYER_NAMES = ["0", "1", "2", "final"]


# One forward pass.


def samples_of(batch):
    return [Sample(f"bild-{row}-ä", row % 3) for row in range(batch)]


def plain_features(backbone, images, precision="fp32"):
    with torch.inference_mode(), Taps(backbone, TOKEN_KINDS) as taps, forward_context(CPU, precision):
        return taps.forward(images)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_stored_values_are_the_rounded_features(dtype):
    backbone, images = timm_vit(reg_tokens=4), noise(3)
    stored = FeatureExtractor(backbone, CPU, "fp32", TOKEN_KINDS, dtype)(images, samples_of(3))
    wanted = plain_features(backbone, images)
    assert stored.keys() == wanted.keys()
    for name, values in stored.items():
        assert values.dtype.str == {"float16": "<f2", "float32": "<f4", "bfloat16": "<u2"}[dtype]
        rounded = wanted[name].to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(as_float32(values, dtype), rounded)


def test_mixed_precision_is_near_fp32_and_not_the_same():
    backbone, images = timm_vit(), noise(3)
    mixed, exact = (
        FeatureExtractor(backbone, CPU, precision, TOKEN_KINDS, "float32")(images, samples_of(3))
        for precision in ("mixed", "fp32")
    )
    for name in exact:
        error = np.abs(mixed[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert 1e-5 < error < 0.05  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(("array", "layer"), [("norm2", 1), ("final", 0)])
def test_overflow_names_sample_layer_and_remedy(array, layer):
    backbone, images = clip_vit(), noise(4)
    module = backbone.norm2(layer) if array == "norm2" else backbone.final_norm
    peaks = plain_features(backbone, images)[array][:, layer].abs().flatten(1).amax(1)
    second, first = peaks.sort().values[-2:]
    assert first > 1.01 * second
    # Scaled so that the largest sample alone leaves float16's range of 65,504.
    factor = 65504 / (first * second).sqrt()
    with torch.no_grad():
        module.weight *= factor
        module.bias *= factor
    sample = samples_of(4)[int(peaks.argmax())].id
    place = f"sample '{sample}', layer {'final' if array == 'final' else layer}"
    with pytest.raises(BackboneError) as caught:
        FeatureExtractor(backbone, CPU, "fp32", TOKEN_KINDS, "float16")(images, samples_of(4))
    assert str(caught.value) == (
        f"{place}: value {first * factor:.4g} is too large for float16; use --dtype float32 or --dtype bfloat16"
    )
    for dtype in ("float32", "bfloat16"):
        FeatureExtractor(backbone, CPU, "fp32", TOKEN_KINDS, dtype)(images, samples_of(4))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("precision", "remedy"), [("fp32", "the weights may be damaged"), ("mixed", "try --precision fp32")]
)
def test_values_that_are_not_finite_are_the_backbones_fault(dtype, precision, remedy):
    images = noise(3)
    images[1, 0, 5, 5] = float("inf")
    with pytest.raises(BackboneError) as caught:
        FeatureExtractor(timm_vit(), CPU, precision, TOKEN_KINDS, dtype)(images, samples_of(3))
    assert str(caught.value) == (
        f"sample 'bild-1-ä', layer 0: the backbone gives values that are not finite; {remedy}"
    )


def test_sample_columns():
    split = plan_split("train", 2, layers=["0"], tokens=("cls",), width=1, dtype="float16", sample_id_bytes=4)
    columns = sample_columns([Sample("é/1", 7), Sample("a", 0)], split)
    assert columns["label"].tolist() == [7, 0]
    assert columns["label"].dtype.str == "<i8"
    assert columns["sample_id"].tobytes() == "é/1a\0\0\0".encode()
    assert columns["valid"].tolist() == [True, True]


# All blocks.

# Blocks hold 128 rows, so train has three and test two, and a batch of 48 does not divide them.
ROWS = {"train": 300, "test": 140}
BATCH_SIZE = 48


@dataclass
class InMemory:
    """Random 8 x 8 images under names of many alphabets; those in `broken` do not decode."""

    name = "made"
    class_names = ("eins", "zwei", "drei")
    identity = {"kind": "made"}  # noqa: RUF012
    broken: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self):
        pixels = np.random.default_rng(0)
        self._pixels = {
            split: pixels.integers(0, 256, (rows, 8, 8, 3), np.uint8) for split, rows in ROWS.items()
        }
        self.splits = {
            split: [Sample(f"{split}/{'äß写真🙂'[row % 5]}-{row}", row * row % 3) for row in range(rows)]
            for split, rows in ROWS.items()
        }

    def image(self, split, row):
        if (split, row) in self.broken:
            raise DatasetError(f"image {self.splits[split][row].id} does not decode")
        return Image.fromarray(self._pixels[split][row])


def make_plan(source, backbone, dtype="float16"):
    splits = {
        split: plan_split(
            split,
            len(samples),
            layers=LAYER_NAMES[:-1],
            tokens=TOKEN_KINDS,
            width=WIDTH,
            dtype=dtype,
            sample_id_bytes=max(len(sample.id.encode()) for sample in samples),
        )
        for split, samples in source.splits.items()
    }
    spec = CacheSpec(backbone.spec, source.identity, dtype, "fp32")
    return Plan(spec, Inventory(splits, tuple(source.class_names)), BATCH_SIZE)


def fill(directory, source, dtype="float16", workers=0):
    """Extract what is pending, complete the cache and return all calls of the progress."""
    backbone, calls = timm_vit(), []
    extractor = FeatureExtractor(backbone, CPU, "fp32", TOKEN_KINDS, dtype)
    with CacheWriter(directory, make_plan(source, backbone, dtype)) as writer:
        run_blocks(writer, source, extractor, to_tensor, workers, lambda *done: calls.append(done))
        assert writer.pending() == []
        writer.finish({"completed_at": 1.0}, "# card\n")
    return calls


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_every_row_holds_the_features_of_its_image(tmp_path, dtype):
    source = InMemory()
    fill(tmp_path, source, dtype)
    cache = open_cache(tmp_path)
    assert cache.inventory.class_names == source.class_names
    for split, samples in source.splits.items():
        reader = cache[split]
        images = torch.stack([to_tensor(source.image(split, row)) for row in range(len(samples))])
        wanted = plain_features(timm_vit(), images)
        got = as_float32(reader.load(LAYER_NAMES, TOKEN_KINDS), dtype)
        assert got.shape == (len(samples), LAYERS + 1, 2, WIDTH)
        # Half a unit in the last place of the stored type, and float32's noise between batches of other sizes.
        rtol = {"float16": 2**-11, "float32": 0, "bfloat16": 2**-8}[dtype]
        np.testing.assert_allclose(
            got, torch.cat([wanted["norm2"], wanted["final"]], 1), rtol=1.01 * rtol, atol=1e-5
        )
        assert reader.sample_ids() == [sample.id for sample in samples]
        assert reader.labels().tolist() == [sample.label for sample in samples]
        assert reader.valid().all()


def test_progress_counts_every_batch_once(tmp_path):
    calls = fill(tmp_path, InMemory())
    done = [first for first, _ in calls]
    assert calls[0] == (0, 440)
    assert done[-1] == 440
    assert {total for _, total in calls} == {440}
    # Batches of a block of 128 rows: 48, 48, 32; they never straddle blocks.
    train = [48, 48, 32, 48, 48, 32, 44]
    assert [b - a for a, b in pairwise(done)] == [*train, 48, 48, 32, 12]


def test_an_image_that_does_not_decode_stops_the_run_and_the_next_one_goes_on(tmp_path):
    fill(tmp_path / "whole", InMemory())
    source, backbone = InMemory(broken={("train", 200)}), timm_vit()
    extractor = FeatureExtractor(backbone, CPU, "fp32", TOKEN_KINDS, "float16")
    cut = tmp_path / "cut"
    with CacheWriter(cut, make_plan(source, backbone)) as writer:
        with pytest.raises(DatasetError, match="image train/ä-200 does not decode"):
            run_blocks(writer, source, extractor, to_tensor, 0, lambda *done: None)
        assert writer.pending()[0] == Block("train", 1, 128, 256)
        assert len(writer.pending()) == 4
    before = open_cache(cut, allow_partial=True)["train"]
    assert before.valid().nonzero()[0].tolist() == list(range(128))
    assert fill(cut, InMemory())[0] == (128, 440)
    assert all_files(cut) == all_files(tmp_path / "whole")


# Worker processes.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 8 x 8 images, 140 to train on and 45 to test on."""
    directory = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(1).integers(0, 256, (185, 8, 8, 3), np.uint8)
    for row, image in enumerate(pixels):
        path = directory / ("train" if row < 140 else "test") / f"class {row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return directory


def test_a_worker_process_changes_no_byte(tmp_path, folder):
    for workers in (0, 1):
        fill(tmp_path / str(workers), ImageFolder(folder), workers=workers)
    assert all_files(tmp_path / "0") == all_files(tmp_path / "1")


def test_an_error_in_a_worker_process_stays_one_line(tmp_path, folder):
    source = ImageFolder(folder)
    broken = folder / source.splits["test"][40].id
    content = broken.read_bytes()
    broken.write_bytes(content[:40])
    try:
        with pytest.raises(DatasetError) as caught:
            fill(tmp_path, source, workers=1)
        assert active_children() == []
    finally:
        broken.write_bytes(content)
    assert str(caught.value).startswith(f"image {broken} does not decode (")
    assert "\n" not in str(caught.value)
    partial = open_cache(tmp_path, allow_partial=True)
    assert (partial["train"].valid().all(), partial["test"].valid().any()) == (True, False)
