"""Extraction on GPUs, pretended ones where the machine has none: the CPU's features, and images that do not fit."""

import gc
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch

from featcache.devices.choice import choose_device
from featcache.extraction.forward_pass.capacity import default_batch_size
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.extraction.running.batch_size import fitting_batch_size
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.running.writing import WAITING
from featcache.store.errors import BackboneError, RequestError
from featcache.store.layers import TOKEN_KINDS
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files

from .test_memory import own_backbone
from .test_pipeline import BATCH_SIZE, LAYER_NAMES, ROWS, InMemory, fill, make_plan
from .tiny import SIZE, noise, timm_vit, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def fill_on(device, directory, *, workers=1, backbone=None):
    """Extract everything on a device; the messages of the run."""
    backbone, source, messages = backbone or timm_vit(), InMemory(), []
    backbone.module.to(device)
    plan = make_plan(source, backbone)
    images = ImageInput(source, to_tensor, SIZE, workers, torch.device(device))
    forward = Forward(backbone, torch.device(device), False, messages.append)
    with forward.extractors(plan) as extractors, CacheWriter(directory, plan) as writer:
        run_blocks(writer, images, extractors, lambda *done: None)
        writer.finish({"completed_at": 1.0}, "# card\n")
    return messages


def features_of(directory):
    cache = open_cache(directory)
    return np.concatenate([cache[split].load(LAYER_NAMES, TOKEN_KINDS) for split in ROWS]).astype(np.float32)


def assert_same(directory, wanted, *, bytes_too):
    """Compare two caches; a real GPU rounds in its own way."""
    np.testing.assert_allclose(features_of(directory), features_of(wanted), rtol=2**-9, atol=1e-3)
    if bytes_too:
        assert all_files(directory) == all_files(wanted)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_gpu_gives_the_features_of_the_cpu(tmp_path, gpus, workers):
    fill(tmp_path / "cpu", InMemory())
    for name in gpus.names:
        assert fill_on(name, tmp_path / name, workers=workers) == []
        assert_same(tmp_path / name, tmp_path / "cpu", bytes_too=gpus.pretended)


# The writer suppresses this warning of zarr's by a filter of the whole process, which two threads take off each other.
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_gpus_work_at_the_same_time(tmp_path, gpus):
    """Each in a thread of one process: which device is the current one, and what a stream waits for, belong to a thread."""
    fill(tmp_path / "cpu", InMemory())
    failed = []

    def work(name):
        try:
            assert fill_on(name, tmp_path / name, workers=0) == []
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[name]) for name in gpus.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for name in gpus.names:
        assert_same(tmp_path / name, tmp_path / "cpu", bytes_too=gpus.pretended)


def test_two_extractions_in_one_process_leave_no_memory_behind(tmp_path, gpus):
    device = gpus.names[-1]
    taken = []
    for again in ("first", "second"):
        fill_on(device, tmp_path / again, workers=0)
        gc.collect()
        taken.append(torch.cuda.memory_allocated(device))
    assert taken[0] == taken[1] == 0 or not gpus.pretended
    assert taken[1] <= taken[0]


def test_a_batch_for_which_the_gpu_has_no_room_is_divided(tmp_path, gpus, monkeypatch):
    fill(tmp_path / "cpu", InMemory())
    for name in gpus.names:
        _, total = torch.cuda.mem_get_info(name)

        def forward(backbone, images, name=name, total=total):
            if len(images) > 20:
                torch.empty(2 * total, dtype=torch.uint8, device=name)  # the allocator's own error
            return backbone.module(images)

        monkeypatch.setattr("featcache.extraction.backbones.timm_vit.TimmViT.forward", forward)
        messages = fill_on(name, tmp_path / name)
        assert [text.rpartition("with ")[2] for text in messages] == [
            "24 images at a time",
            "12 images at a time",
        ]
        assert_same(tmp_path / name, tmp_path / "cpu", bytes_too=gpus.pretended)


def bytes_of_a_pass(machine):
    """Bytes that the first GPU needs for a backbone and for a pass of a batch, images not counted."""
    backbone, memory = timm_vit(), machine.memory[0]
    backbone.module.to("cuda:0")
    weights, images = memory.allocated_bytes, noise(BATCH_SIZE).to("cuda:0")
    memory.peak_bytes = before = memory.allocated_bytes
    with torch.inference_mode():
        backbone.forward(images)
    return weights, memory.peak_bytes - before


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_running_out_of_memory_changes_no_byte(tmp_path, pretended, share):
    """The GPU is full at its capacity, in whatever part of a pass that is."""
    fill(tmp_path / "cpu", InMemory())
    weights, activations = bytes_of_a_pass(pretended)
    gc.collect()
    # Images lie on the device while they wait for their pass, and until their features are on the disk.
    images = (WAITING + 2) * noise(BATCH_SIZE).nbytes
    pretended.memory[0].capacity_bytes = weights + images + int(share * activations)
    messages = fill_on("cuda:0", tmp_path / "full", workers=0)
    assert messages
    assert all(text.startswith("out of memory on cuda:0") for text in messages)
    assert_same(tmp_path / "full", tmp_path / "cpu", bytes_too=True)


def test_no_room_for_one_image_ends_the_run_in_one_line(tmp_path, pretended):
    backbone = timm_vit()
    backbone.module.to("cuda:0")
    pretended.memory[0].capacity_bytes = pretended.memory[0].allocated_bytes + 4096
    with pytest.raises(
        BackboneError, match="one image does not fit into the memory of cuda:0; use a smaller"
    ):
        fill_on("cuda:0", tmp_path / "cache", workers=0, backbone=backbone)


def test_no_room_for_the_backbone_ends_the_run_in_one_line(tmp_path, pretended):
    pretended.memory[1].capacity_bytes = 2048
    request = ExtractRequest("own", "digits", limit=20, device="cuda:1")
    with pytest.raises(
        BackboneError, match="the backbone does not fit into the memory of cuda:1; free some, or"
    ):
        extract(request, [tmp_path], backbone=own_backbone())
    assert not list(tmp_path.glob("*"))


def test_the_batch_is_chosen_by_the_free_memory(pretended):
    device, backbone = torch.device("cuda:1"), timm_vit()
    backbone.module.to(device)
    plan = make_plan(InMemory(), backbone)
    sizes = []
    for capacity in (2**30, 2**23, 2**21):
        torch.cuda.empty_cache()
        pretended.memory[1].capacity_bytes = capacity
        sizes.append(fitting_batch_size(backbone, device, plan.spec, plan.inventory))
    assert sizes[0] == default_batch_size(device) > sizes[1] > sizes[2] >= 1
    # The chosen batch fits.
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        backbone.forward(noise(sizes[-1]).to(device))
    assert pretended.memory[1].peak_bytes <= 2**21


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_the_whole_run_on_a_gpu(tmp_path, gpus, precision):
    """All that `extract` does (self-test, workers, journal) on the last GPU, against the CPU."""
    found = {}
    for device in ("cpu", gpus.names[-1]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = own_backbone()
        # The batch is the same, since it decides about the last bits of some products.
        options = {"limit": 20, "batch_size": BATCH_SIZE, "precision": precision, "workers": 1}
        request = ExtractRequest("own", "digits", device=device, **options)
        result = extract(request, [tmp_path / device.replace(":", "")], backbone=backbone)
        split = open_cache(result.path)["train"]
        found[device] = split.load(split.layers, split.tokens).astype(np.float32)
    tolerance = 2e-3 if precision == "fp32" else 0.1
    np.testing.assert_allclose(found[gpus.names[-1]], found["cpu"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:9"])
def test_a_gpu_that_does_not_exist(pretended, name):
    with pytest.raises(RequestError) as caught:
        choose_device(name)
    assert str(caught.value) == (
        f"device {name!r} cannot be used here (CUDA error: invalid device ordinal (pretended)); try --device cpu"
    )


# Planted faults: what an extraction would do if a line of the product were missing is seen.


def problems_of(machine):
    kinds = {problem.kind for problem in machine.problems}
    machine.problems.clear()
    return kinds


def nothing(*arguments):
    """Stands for a call that was forgotten."""


def test_a_missing_wait_between_streams_is_seen(tmp_path, pretended, monkeypatch):
    monkeypatch.setattr("support.pretended_cuda.api.Stream.wait_stream", nothing)
    fill_on("cuda:0", tmp_path / "cache", workers=0)
    assert "race" in problems_of(pretended)


def test_memory_freed_too_early_is_seen(tmp_path, pretended, monkeypatch):
    monkeypatch.setattr("support.pretended_cuda.tensors.DeviceTensor.record_stream", nothing)
    fill_on("cuda:0", tmp_path / "cache", workers=0)
    gc.collect()
    assert problems_of(pretended) == {"freed in use"}


@pytest.mark.parametrize("fault", ["no wait", "another device"])
def test_results_read_before_they_are_there_are_seen(tmp_path, pretended, monkeypatch, fault):
    if fault == "no wait":
        monkeypatch.setattr("support.pretended_cuda.api.Event.synchronize", nothing)
    else:
        current = torch.cuda.current_stream
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current("cuda:0"))
    fill(tmp_path / "cpu", InMemory())
    # The host holds NaN until it waits, so rows are not finite, or not those of the CPU.
    with suppress(BackboneError):
        fill_on("cuda:1", tmp_path / "cache", workers=0)
        assert not np.array_equal(features_of(tmp_path / "cache"), features_of(tmp_path / "cpu"))
    problems_of(pretended)


def test_a_tensor_of_the_backbone_left_on_the_cpu_is_seen(tmp_path, pretended):
    backbone = timm_vit()
    block = backbone.module.blocks[1]
    scale = torch.full([16], 0.5)  # neither a parameter nor a buffer, so `to` passes it over
    block.register_forward_hook(lambda module, inputs, output: output * scale)
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        fill_on("cuda:0", tmp_path / "cache", workers=0, backbone=backbone)
