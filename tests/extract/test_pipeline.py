"""From images to the bytes of a cache: stored types, what stops a run, blocks, and that a stopped run loses nothing."""

import os
import signal
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from featcache.devices.precision import forward_context
from featcache.extraction.cached.retry import drop_restored, refuse_empty_splits, reopen_restored, try_again
from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.worker_pool import WorkerError
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.forward_pass.taps import Taps
from featcache.extraction.forward_pass.view_passes import view_passes
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.running.writing import sample_columns
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Sample, Source
from featcache.store.errors import BackboneError, DatasetError, UnavailableError
from featcache.store.inventory import Block
from featcache.store.journal import Plan
from featcache.store.layers import TOKEN_KINDS
from featcache.store.planning import plan_split
from featcache.store.reading.reader import as_float32, open_cache
from featcache.store.spec import CacheSpec
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files

from .tiny import LAYERS, SIZE, WIDTH, clip_vit, default_arrays, noise, timm_vit, to_tensor

# Python 3.12 and later warn where a process with threads forks, as torch's loader does.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

CPU = torch.device("cpu")
LAYER_NAMES = ["0", "1", "2", "final"]


# One forward pass.


def samples_of(batch):
    return [Sample(f"bild-{row}-ä", row % 3) for row in range(batch)]


def extractor_of(backbone, precision="fp32", dtype="float16"):
    return FeatureExtractor(backbone, CPU, precision, default_arrays(backbone), dtype)


def plain_features(backbone, images, precision="fp32"):
    with (
        torch.inference_mode(),
        Taps(backbone, default_arrays(backbone)) as taps,
        forward_context(CPU, precision),
    ):
        return taps.forward(images)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_stored_values_are_the_rounded_features(dtype):
    backbone, images = timm_vit(reg_tokens=4), noise(3)
    stored = extractor_of(backbone, "fp32", dtype)(images, samples_of(3))
    wanted = plain_features(backbone, images)
    assert stored.keys() == wanted.keys()
    for name, values in stored.items():
        assert values.dtype.str == {"float16": "<f2", "float32": "<f4", "bfloat16": "<u2"}[dtype]
        rounded = wanted[name].to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(as_float32(values, dtype), rounded)


def test_mixed_precision_is_near_fp32_and_not_the_same():
    backbone, images = timm_vit(), noise(3)
    mixed, exact = (
        extractor_of(backbone, precision, "float32")(images, samples_of(3)) for precision in ("mixed", "fp32")
    )
    for name in exact:
        error = np.abs(mixed[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert 1e-5 < error < 0.05  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(("array", "layer"), [("norm2", 1), ("final", 0)])
def test_overflow_names_sample_layer_and_remedy(array, layer):
    backbone, images = clip_vit(), noise(4)
    module = backbone.tap_point("norm2", layer).module if array == "norm2" else backbone.final_norm
    peaks = plain_features(backbone, images)[array][:, layer].abs().flatten(1).amax(1)
    second, first = peaks.sort().values[-2:]
    assert first > 1.01 * second
    # Scaled so that the largest sample alone leaves float16's range of 65,504.
    factor = 65504 / (first * second).sqrt()
    with torch.no_grad():
        module.weight *= factor
        module.bias *= factor
    sample = samples_of(4)[int(peaks.argmax())].id
    place = f"sample '{sample}', {array}, layer {'final' if array == 'final' else layer}"
    with pytest.raises(BackboneError) as caught:
        extractor_of(backbone, "fp32", "float16")(images, samples_of(4))
    assert str(caught.value) == (
        f"{place}: value {first * factor:.4g} is too large for float16; use --dtype float32 or --dtype bfloat16"
    )
    for dtype in ("float32", "bfloat16"):
        extractor_of(backbone, "fp32", dtype)(images, samples_of(4))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("precision", "remedy"), [("fp32", "the weights may be damaged"), ("mixed", "try --precision fp32")]
)
def test_values_that_are_not_finite_are_the_backbones_fault(dtype, precision, remedy):
    images = noise(3)
    images[1, 0, 5, 5] = float("inf")
    with pytest.raises(BackboneError) as caught:
        extractor_of(timm_vit(), precision, dtype)(images, samples_of(3))
    assert str(caught.value) == (
        f"sample 'bild-1-ä', norm2, layer 0: the backbone gives values that are not finite; {remedy}"
    )


def test_sample_columns():
    split = plan_split("train", 2, layers=["0"], tokens=("cls",), width=1, dtype="float16", sample_id_bytes=4)
    content = np.zeros((2, 16), np.uint8)
    columns = sample_columns([Sample("é/1", 7), Sample("a", 0)], split, content, failed=[1])
    assert columns["label"].tolist() == [7, 0]
    assert columns["label"].dtype.str == "<i8"
    assert columns["sample_id"].tobytes() == "é/1a\0\0\0".encode()
    assert columns["valid"].tolist() == [True, False]
    assert columns["content_digest"] is content


# All blocks.

# Blocks hold 128 rows, so train has three and test two, and a batch of 48 does not divide them.
ROWS = {"train": 300, "test": 140}
BATCH_SIZE = 48


@dataclass
class InMemory(Source):
    """Random 8 x 8 images under names of many alphabets; those in `broken` do not decode."""

    name = "made"
    targets = Targets(SINGLE_LABEL, ("eins", "zwei", "drei"))
    identity = {"kind": "made"}  # noqa: RUF012
    broken: set[tuple[str, int]] = field(default_factory=set)
    gone: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self):
        pixels = np.random.default_rng(0)
        self._pixels = {
            split: pixels.integers(0, 256, (rows, 8, 8, 3), np.uint8) for split, rows in ROWS.items()
        }
        self._samples = {
            split: [Sample(f"{split}/{'äß写真🙂'[row % 5]}-{row}", row * row % 3) for row in range(rows)]
            for split, rows in ROWS.items()
        }

    @property
    def splits(self):
        return self._samples

    def image(self, split, row):
        if (split, row) in self.broken:
            raise DatasetError(f"image {self.splits[split][row].id} does not decode")
        if (split, row) in self.gone:
            raise UnavailableError(f"image {self.splits[split][row].id} cannot be read")
        return Image.fromarray(self._pixels[split][row])


def make_plan(source, backbone, dtype="float16", contents=None):
    spec = CacheSpec(backbone.spec, source.identity, dtype, "fp32")
    return Plan(spec, plan_inventory(backbone, source, contents or FeatureSelection(), dtype), BATCH_SIZE)


def input_of(source, workers=0, **options):
    return ImageInput(source, to_tensor, SIZE, workers, CPU, **options)


def fill(directory, source, dtype="float16", workers=0, contents=None, backbone=None, **options):
    """Extract what is pending, complete the cache and return all calls of the progress."""
    backbone, calls = backbone or timm_vit(), []
    with CacheWriter(directory, make_plan(source, backbone, dtype, contents)) as writer:
        extractors = extractors_of(writer.plan, backbone)
        run_blocks(writer, input_of(source, workers, **options), extractors, lambda *done: calls.append(done))
        assert writer.pending() == []
        writer.finish({"completed_at": 1.0}, "# card\n")
    return calls


def extractors_of(plan, backbone):
    return view_passes(
        backbone,
        plan.inventory,
        lambda sized, wanted: FeatureExtractor(sized, CPU, "fp32", wanted, plan.spec.dtype),
    )


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
    cut = tmp_path / "cut"
    with CacheWriter(cut, make_plan(source, backbone)) as writer:
        with pytest.raises(DatasetError, match="image train/ä-200 does not decode"):
            run_blocks(writer, input_of(source), extractors_of(writer.plan, backbone), lambda *done: None)
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
        fill(tmp_path / str(workers), resolve_source(f"imagefolder:{folder}"), workers=workers)
    assert all_files(tmp_path / "0") == all_files(tmp_path / "1")


def test_an_error_in_a_worker_process_stays_one_line(tmp_path, folder):
    source = resolve_source(f"imagefolder:{folder}")
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


# More than the paper's arrays, images that fail, memory that does not suffice.

RICH = FeatureSelection(
    taps=("norm2", "mlp"), layers="1,2", tokens="cls,ap,registers,grid2", patches="1,final"
)


def test_all_groups_of_tokens_come_from_one_pass_and_can_come_later(tmp_path):
    source, backbone = InMemory(), timm_vit(reg_tokens=3)
    passes = []
    handle = backbone.module.register_forward_hook(lambda *_: passes.append(1))
    fill(tmp_path / "whole", source, contents=RICH, backbone=backbone)
    assert len(passes) == 11  # one a batch, whatever is cached
    handle.remove()
    whole = open_cache(tmp_path / "whole")
    names = {
        *("norm2", "mlp", "final", "norm2_registers", "mlp_registers", "final_registers"),
        *("norm2_grid2", "mlp_grid2", "final_grid2", "norm2_patches", "mlp_patches", "final_patches"),
    }
    arrays = whole.inventory.splits["train"].arrays
    assert {name for name, array in arrays.items() if array.layers} == names
    assert arrays["mlp_patches"].shape == (300, LAYERS, 16, 4 * WIDTH)
    assert arrays["mlp_patches"].layers == ("1",)
    # All tokens of norm2, recorded by hand: registers and patches are cut from them, the grid averages 2 x 2 patches.
    images = torch.stack([to_tensor(source.image("test", row)) for row in range(140)])
    seen = []
    module = backbone.module.blocks[1].norm2
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        backbone.forward(images)
    handle.remove()
    tokens = seen[0].numpy()
    square = tokens[:, 4:].reshape(
        140, 2, 2, 2, 2, WIDTH
    )  # row of the grid, row in the region, column likewise
    for group, wanted in {
        "registers": tokens[:, 1:4],
        "patches": tokens[:, 4:],
        "grid2": square.mean((2, 4)).reshape(140, 4, WIDTH),
        "pooled": np.stack([tokens[:, 0], tokens[:, 4:].mean(1)], 1),
    }.items():
        view = whole["test"].view("norm2", group)
        got = as_float32(view.load(["1"], view.tokens)[:, 0], "float16")
        np.testing.assert_allclose(got, wanted, rtol=1.01 * 2**-11, atol=2e-5)
    for contents in (
        FeatureSelection(layers="2", splits=("test",)),
        FeatureSelection(tokens="cls,grid2"),
        RICH,
    ):
        fill(tmp_path / "grown", source, contents=contents, backbone=backbone)
    few, grown = all_files(tmp_path / "whole"), all_files(tmp_path / "grown")
    # Nothing of what both hold depends on what came first.
    assert {path: grown[path] for path in few if "/c." in path} == {
        path: content for path, content in few.items() if "/c." in path
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_stops_the_run_even_where_bad_images_are_skipped(tmp_path, workers):
    """A folder that was unplugged must not become a cache of empty rows."""
    gone, backbone = InMemory(gone={("train", 200)}), timm_vit()
    with CacheWriter(tmp_path / "cut", make_plan(gone, backbone)) as writer:
        extractors = extractors_of(writer.plan, backbone)
        with pytest.raises(UnavailableError, match="image train/ä-200 cannot be read"):
            run_blocks(writer, input_of(gone, workers, skip_failures=True), extractors, lambda *done: None)
    fill(tmp_path / "whole", InMemory())
    assert fill(tmp_path / "cut", InMemory(), skip_failures=True)[0] == (128, 440)
    assert all_files(tmp_path / "cut") == all_files(tmp_path / "whole")


def test_skipped_images_leave_empty_rows_and_change_no_other(tmp_path):
    broken = {("train", 5), ("train", 200), *(("test", row) for row in range(96, 128))}
    fill(tmp_path / "whole", InMemory())
    told = []
    fill(tmp_path / "skipped", InMemory(broken=broken), skip_failures=True, say=told.append)
    whole, skipped = open_cache(tmp_path / "whole"), open_cache(tmp_path / "skipped")
    assert len(told) == len(broken)
    assert "image train/ä-5 does not decode" in told[0]
    for split in ROWS:
        gone = sorted(row for name, row in broken if name == split)
        reader = skipped[split]
        assert np.flatnonzero(~reader.valid()).tolist() == gone
        assert not reader.content_digests()[gone].any()
        assert reader.sample_ids() == whole[split].sample_ids()
        got, wanted = (cache[split].load(LAYER_NAMES, TOKEN_KINDS) for cache in (skipped, whole))
        assert np.isnan(got[gone]).all()
        np.testing.assert_array_equal(np.delete(got, gone, 0), np.delete(wanted, gone, 0))


def test_nothing_is_added_to_a_cache_of_other_images(tmp_path):
    source = InMemory()
    fill(tmp_path, source, contents=FeatureSelection(splits=("test",)))
    digests = {"test": open_cache(tmp_path)["test"].content_digests()}
    source._pixels["test"][100, 0, 0, 0] ^= 1  # one bit of one pixel
    name = source.splits["test"][100].id
    before = {path: content for path, content in all_files(tmp_path).items() if "/test/" in path}
    with pytest.raises(DatasetError, match=f"image '{name}' is not the one that the cache was made from"):
        fill(tmp_path, source, contents=FeatureSelection(taps=("norm2", "block")), known_content=digests)
    assert before.items() <= all_files(tmp_path).items()


def test_a_batch_that_does_not_fit_into_memory_is_divided(tmp_path):
    backbone, told = timm_vit(), []
    plain, limit = backbone.forward, 20

    def forward(images):
        if len(images) > limit:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return plain(images)

    images = noise(48)
    wanted = extractor_of(backbone, "fp32", "float32")(images, samples_of(48))
    backbone.forward = forward
    extractor = FeatureExtractor(backbone, CPU, "fp32", default_arrays(backbone), "float32", told.append)
    for _ in range(2):
        got = extractor(images, samples_of(48))
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert [text.rpartition("with ")[2] for text in told] == ["24 images at a time", "12 images at a time"]
    limit = 0
    with pytest.raises(BackboneError, match="one image does not fit into the memory of cpu"):
        extractor(images, samples_of(48))


def test_no_row_follows_a_batch_that_failed(tmp_path):
    source, backbone = InMemory(), timm_vit()
    plan = make_plan(source, backbone)
    extractors = extractors_of(plan, backbone)
    start, calls = FeatureExtractor.start, []

    def failing(self, images):
        calls.append(1)
        if len(calls) == 2:  # the second batch of a block of three

            def fail():
                raise OSError(5, "Input/output error")

            return fail
        return start(self, images)

    with pytest.MonkeyPatch.context() as patch, CacheWriter(tmp_path, plan, checkpoint_s=0.0) as writer:
        patch.setattr(FeatureExtractor, "start", failing)
        with pytest.raises(OSError, match="Input/output error"):
            run_blocks(writer, input_of(source), extractors, lambda *done: None)
    fill(tmp_path, source)
    fill(tmp_path / "whole", source)
    whole = all_files(tmp_path / "whole")
    assert {
        path: content for path, content in all_files(tmp_path).items() if not path.startswith("whole")
    } == whole


# What cannot be prepared, and rows that are tried again.


class Strip(InMemory):
    def image(self, split, row):
        return Image.new("RGB", (60_000, 1)) if (split, row) == ("train", 5) else super().image(split, row)


def first_batch(source, transform):
    return next(iter(image_batches(source, transform, [Rows("train", 0, 8)], 0, SIZE)))


def test_an_image_that_resizing_would_blow_up_is_refused_by_name():
    transform = transforms.Compose(
        [transforms.Resize(160), transforms.CenterCrop(SIZE), transforms.ToTensor()]
    )
    batch = first_batch(Strip(), transform)
    [(row, message)] = batch.failures
    assert (row, batch.unavailable) == (5, [])
    assert message == (
        "image 'train/ä-5' is 60000 x 1 pixels: with 160 px on the shorter side it would be 9,600,000 px long; crop it"
    )


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), ZeroDivisionError("by zero")])
def test_what_preprocessing_raises_is_told_by_the_name_of_the_image(error):
    def transform(image):
        if image.width > 10:
            raise error
        return to_tensor(image)

    [(row, message)] = first_batch(Strip(), transform).failures
    assert row == 5
    assert message.startswith("image 'train/ä-5' ")
    assert "cannot be preprocessed" in message or "more memory than there is" in message


def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path):
    class Deadly(InMemory):
        def image(self, split, row):
            os.kill(os.getpid(), signal.SIGKILL)

    backbone = timm_vit()
    with CacheWriter(tmp_path, make_plan(InMemory(), backbone)) as writer:
        extractors = extractors_of(writer.plan, backbone)
        with pytest.raises(WorkerError, match=r"a process that decodes images came to an end .*--workers"):
            run_blocks(writer, input_of(Deadly(), 1), extractors, lambda *done: None)


def test_failed_rows_are_tried_again_and_the_outcome_is_that_of_a_run_without_failures(tmp_path):
    broken, backbone = InMemory(broken={("train", 5), ("test", 0), ("test", 139)}), timm_vit()
    fill(tmp_path / "whole", InMemory())
    fill(tmp_path / "again", broken, skip_failures=True)
    still = try_again(open_cache(tmp_path / "again"), broken)
    assert (still.failed, still.restored, still.blocks) == (3, 0, [])
    assert str(still) == "3 samples have no features: tried again, still do not decode"
    half = InMemory(broken={("test", 139)})
    retry = try_again(open_cache(tmp_path / "again"), half)
    assert (retry.failed, retry.restored) == (3, 2)
    assert retry.blocks == [Block("train", 0, 0, 128), Block("test", 0, 0, 128)]
    assert "2 of them decode now; 2 blocks are extracted again" in str(retry)
    reopen_restored(tmp_path / "again", retry)
    assert fill(tmp_path / "again", half, skip_failures=True, backbone=backbone)[0] == (440 - 256, 440)
    last = try_again(open_cache(tmp_path / "again"), InMemory())
    reopen_restored(tmp_path / "again", last)
    fill(tmp_path / "again", InMemory(), skip_failures=True)
    assert all_files(tmp_path / "again") == all_files(tmp_path / "whole")
    assert try_again(open_cache(tmp_path / "again"), InMemory()) is None


def test_failed_rows_of_an_unfinished_run_are_tried_again(tmp_path):
    broken, backbone = InMemory(broken={("train", 5)}, gone={("test", 0)}), timm_vit()
    with CacheWriter(tmp_path / "cut", make_plan(broken, backbone)) as writer:
        extractors = extractors_of(writer.plan, backbone)
        with pytest.raises(UnavailableError):
            run_blocks(writer, input_of(broken, skip_failures=True), extractors, lambda *done: None)
    assert drop_restored(tmp_path / "cut", broken) is None
    assert drop_restored(tmp_path / "cut", InMemory()).blocks == [Block("train", 0, 0, 128)]
    fill(tmp_path / "cut", InMemory())
    fill(tmp_path / "whole", InMemory())
    assert all_files(tmp_path / "cut") == all_files(tmp_path / "whole")


def test_a_split_without_a_single_image_is_not_completed_and_is_tried_again(tmp_path):
    broken, backbone = InMemory(broken={("test", row) for row in range(140)}), timm_vit()
    with CacheWriter(tmp_path / "cut", make_plan(broken, backbone)) as writer:
        extractors = extractors_of(writer.plan, backbone)
        run_blocks(writer, input_of(broken, skip_failures=True), extractors, lambda *done: None)
        with pytest.raises(DatasetError, match="none of the 140 images of split test decodes"):
            refuse_empty_splits(writer)
    assert fill(tmp_path / "cut", InMemory())[0] == (300, 440)
    fill(tmp_path / "whole", InMemory())
    assert all_files(tmp_path / "cut") == all_files(tmp_path / "whole")


def test_an_image_that_comes_unread_and_is_damaged_is_told_by_its_name(tmp_path):
    """Sequences of other people's give images of Pillow's that are decoded when they are first looked at."""
    Image.new("RGB", (50, 50), "red").save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2])

    class Lazy(InMemory):
        def image(self, split, row):
            return Image.open(tmp_path / "x.png") if row == 5 else super().image(split, row)

    [(row, message)] = first_batch(Lazy(), to_tensor).failures
    assert row == 5
    assert message.startswith("image 'train/ä-5' cannot be converted to RGB (")


def test_a_program_that_allows_tf32_changes_no_pass_in_fp32():
    backbone, matmul = timm_vit(), torch.backends.cuda.matmul
    seen = []
    backbone.final_norm.register_forward_hook(lambda *_: seen.append(matmul.fp32_precision))
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        for precision in ("fp32", "mixed"):
            extractor_of(backbone, precision, "float32")(noise(2), samples_of(2))
        assert seen == ["ieee", "tf32"]
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
