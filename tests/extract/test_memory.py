"""Memory: it does not grow with the dataset, batches are as large as it allows, and running out of it loses nothing."""

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from featcache.extraction.backbones.base import TokenLayout
from featcache.extraction.backbones.custom import Parts, custom_backbone
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.forward_pass.view_passes import ViewPasses
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.extraction.running.batch_size import TRIAL_IMAGES, USABLE_PART, largest_batch
from featcache.extraction.running.pipeline import run_blocks
from featcache.store.errors import BackboneError
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files
from support.processes import TESTS, start_module

from .test_pipeline import BATCH_SIZE, CPU, InMemory, fill, input_of, make_plan
from .tiny import timm_vit, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

MEGABYTE = 2**20
# Of an image, the run keeps its place in the records of its block (which end in the manifest), a sixth of a kilobyte. What
# holds on to images or features keeps 12 kB or 17 kB. A process that decodes grows by up to 12 MB once, however many there are.
ALLOWED = {"main": 4 * MEGABYTE, "decoding": 20 * MEGABYTE, "device": 2 * MEGABYTE}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets peaks")
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_memory_does_not_grow_with_the_dataset(device):
    grown = []
    for rows in (300, 3000):
        # From the tests' folder: in the repo's root, `extract` is the package's.
        process = start_module("extract.peak_memory", rows, device, cwd=TESTS)
        out, err = process.communicate()
        assert process.returncode == 0, err
        grown.append(json.loads(out))
    for process, few in grown[0].items():
        assert grown[1][process] - few <= ALLOWED[process], f"{process}: {grown}"


@pytest.mark.parametrize("per_image", [10_000, 5_000_000, 300_000_000])
@pytest.mark.parametrize("free", [0, 10**9, 80 * 10**9])
@pytest.mark.parametrize("waiting", [0, 2_000_000])
def test_the_largest_batch_that_fits_is_chosen(per_image, free, waiting):
    passes = []

    def peak(images):
        passes.append(images)
        return 7 * 10**8 + images * per_image  # with the weights

    def free_bytes():
        assert passes == list(TRIAL_IMAGES), "what the first pass allocates for good is not free"
        return free

    chosen = largest_batch(128, waiting, peak, free_bytes)
    assert 128 % chosen == 0
    takes = [size * (per_image + waiting) for size in (chosen, 2 * chosen)]
    assert chosen == 1 or takes[0] <= USABLE_PART * free
    assert chosen == 128 or takes[1] > USABLE_PART * free


def no_room():
    torch.empty(2**57)  # more than any processor can address, so this is torch's own error


def no_room_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("run_out", [no_room, no_room_on_a_gpu])
def test_running_out_of_memory_loses_no_row_and_changes_no_byte(tmp_path, run_out):
    fill(tmp_path / "whole", InMemory())
    backbone, source, told, calls = timm_vit(), InMemory(), [], []
    plain, limits = backbone.forward, [BATCH_SIZE, BATCH_SIZE, BATCH_SIZE, 20]

    def forward(images):
        limit = limits.pop(0) if len(limits) > 1 else limits[0]  # less room from the fourth pass on
        if len(images) > limit:
            run_out()
        return plain(images)

    backbone.forward = forward
    cut = tmp_path / "cut"
    with CacheWriter(cut, make_plan(source, backbone)) as writer:
        arrays = {name: list(split.arrays.values()) for name, split in writer.plan.inventory.splits.items()}
        shared = FeatureExtractor(
            backbone, CPU, "fp32", [a for a in arrays["train"] if a.layers], "float16", told.append
        )
        run_blocks(
            writer,
            input_of(source),
            dict.fromkeys(arrays, ViewPasses({"": shared})),
            lambda done, total: calls.append(done),
        )
        assert writer.plan.batch_size == BATCH_SIZE
        writer.finish({"completed_at": 1.0}, "# card\n")
    assert told == [f"out of memory on cpu: going on with {size} images at a time" for size in (24, 12)]
    assert calls == sorted(set(calls))
    assert all_files(cut) == all_files(tmp_path / "whole")


class Greedy(VisionTransformer):
    """A model for which there is no room, once it is `hungry`."""

    hungry = False

    def forward(self, x):
        if self.hungry:
            no_room()
        return super().forward(x)


def own_backbone(model=Greedy):
    module = model(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()
    options = {"name": "own", "input_size": 32, "transform": to_tensor, "preprocessing": {"size": 32}}
    return custom_backbone(
        module, Parts("blocks", "norm", {"norm2": "norm2"}), TokenLayout(True, 0, (4, 4)), **options
    )


def test_a_backbone_for_which_there_is_no_room_at_all(tmp_path):
    backbone = own_backbone()
    backbone.module.hungry = True
    with pytest.raises(
        BackboneError, match="the backbone does not fit into the memory of cpu; free some, or"
    ):
        extract(ExtractRequest("own", "digits", limit=20), [tmp_path], backbone=backbone)
    assert not list(tmp_path.glob("*"))


class Failing(VisionTransformer):
    """A model whose device fails with `error`, once it has one."""

    error: Exception | None = None

    def forward_features(self, x, *arguments, **options):
        if self.error is not None and len(x) == self.failing_batch:
            raise self.error
        return super().forward_features(x, *arguments, **options)


DEVICE_ERRORS = [
    (
        RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronous"),
        "cpu failed (CUDA error: unspecified launch failure); what was committed is kept: run the same command again",
    ),
    (
        RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
        ),
        "the backbone computes on more devices than cpu (Expected all tensors",
    ),
]


@pytest.mark.parametrize(("error", "message"), DEVICE_ERRORS)
@pytest.mark.parametrize("failing_batch", [1, 16])
def test_an_error_of_the_device_is_one_line(tmp_path, error, message, failing_batch):
    backbone = own_backbone(Failing)
    backbone.module.error, backbone.module.failing_batch = error, failing_batch
    with pytest.raises(BackboneError) as caught:
        extract(ExtractRequest("own", "digits", limit=64, workers=0), [tmp_path], backbone=backbone)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
