"""On every GPU of the machine: the features of the CPU, and batches that do not fit."""

import numpy as np
import pytest
import torch

from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.store.layers import TOKEN_KINDS
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter

from .test_pipeline import LAYER_NAMES, ROWS, InMemory, fill, make_plan
from .tiny import SIZE, timm_vit, to_tensor

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
DEVICES = [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]


def fill_on(device, directory):
    """Extract everything on a device; what was said."""
    backbone, source, told = timm_vit(), InMemory(), []
    backbone.module.to(device)
    plan = make_plan(source, backbone)
    images = ImageInput(source, to_tensor, SIZE, 1, torch.device(device))
    forward = Forward(backbone, torch.device(device), False, told.append)
    with forward.extractors(plan) as extractors, CacheWriter(directory, plan) as writer:
        run_blocks(writer, images, extractors, lambda *done: None)
        writer.finish({"completed_at": 1.0}, "# card\n")
    return told


def features_of(directory):
    cache = open_cache(directory)
    return np.concatenate([cache[split].load(LAYER_NAMES, TOKEN_KINDS) for split in ROWS]).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gpu_gives_the_features_of_the_cpu(tmp_path, device):
    fill(tmp_path / "cpu", InMemory())
    for again in ("first", "second"):
        assert fill_on(device, tmp_path / again) == []
        np.testing.assert_allclose(
            features_of(tmp_path / again), features_of(tmp_path / "cpu"), rtol=2**-9, atol=1e-3
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_for_which_the_gpu_has_no_room_is_divided(tmp_path, device, monkeypatch):
    fill(tmp_path / "cpu", InMemory())
    _, total = torch.cuda.mem_get_info(device)

    def forward(backbone, images):
        if len(images) > 20:
            torch.empty(2 * total, dtype=torch.uint8, device=device)  # the allocator's own error
        return backbone.module(images)

    monkeypatch.setattr("featcache.extraction.backbones.timm_vit.TimmViT.forward", forward)
    told = fill_on(device, tmp_path / "gpu")
    assert [text.rpartition("with ")[2] for text in told] == ["24 images at a time", "12 images at a time"]
    np.testing.assert_allclose(
        features_of(tmp_path / "gpu"), features_of(tmp_path / "cpu"), rtol=2**-9, atol=1e-3
    )
