"""Probes on int8 caches: every way to the tokens gives the decoded values, and torch's kernel gives those of numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from featcache.devices.int8_kernel import torch_kernel
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.dataset import CachedSamples
from featcache.store.quantization import RangeFit
from featcache.store.reading.decoding import numpy_kernel
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import write_blocks
from support.int8 import PROVENANCE

from .caches import expected_tokens, make_rich_content, rich_plan, select

SKIPPED = [0, 7, 128, 299]
SELECTIONS = [("last", "cls"), ("all", "cls+ap+patches"), ("3,final", "ap+registers+grid2")]


@pytest.fixture(scope="module", params=[1.0, 1e6], ids=["float16", "too large for float16"])
def cache_and_values(request, tmp_path_factory):
    """An int8 cache, its plan, and the decoded values; with large values in patches alone."""
    plan = rich_plan(dtype="int8")
    content = make_rich_content(plan)
    rng = np.random.default_rng(0)

    def fit(arrays):
        scales = {}
        for array in arrays:
            ranges = RangeFit(array)
            spread = request.param if "patches" in array.name else 1.0
            ranges.add(rng.standard_normal((20, *array.shape[1:])).astype("f4") * np.float32(spread) + 2)
            scales[array.name] = ranges.scales()
        return scales

    folder = tmp_path_factory.mktemp("int8")
    with CacheWriter(folder, plan, fit=fit) as writer:
        scales, values = dict(writer.scales), {}
        for split in plan.inventory.splits.values():
            columns = content[split.name]
            values[split.name] = {}
            for name, array in split.arrays.items():
                if not array.layers:
                    continue
                columns[name] = rng.integers(-127, 128, columns[name].shape, np.int8)
                if split.name == "train":
                    columns[name][SKIPPED] = -128
                at = [array.position(layer) for layer in array.layers]
                values[split.name][name] = scales[name].of(at).decode(columns[name])
        content["train"]["valid"][SKIPPED] = False
        write_blocks(writer, content)
        writer.finish(PROVENANCE, "# card\n")
    return open_cache(folder), plan, values, request.param


@pytest.mark.parametrize("choice", SELECTIONS)
def test_tokens_in_memory_and_streamed_are_the_decoded_values(cache_and_values, choice):
    cache, plan, values, spread = cache_and_values
    selection = select(cache, *choice)
    valid = np.setdiff1d(np.arange(300), SKIPPED)
    exact = expected_tokens(values, plan, "train", selection.places())[valid]
    loaded = load_split(cache, "train", selection, "cpu", None)
    mixed = spread > 1 and "patches" in choice[1]
    rounded = exact if mixed else exact.half().float()
    rows = torch.from_numpy(np.random.default_rng(1).permutation(len(valid)))
    lengths = [tokens.norm(dim=-1, keepdim=True) for tokens in (rounded, exact)]
    torch.testing.assert_close(loaded.tokens.batch(rows), (rounded / lengths[0])[rows], rtol=1e-5, atol=1e-6)
    streamed = load_split(cache, "train", selection, "cpu", 300 * selection.num_tokens * 16)
    assert streamed.streamed
    wanted = (exact / lengths[1]).float()
    torch.testing.assert_close(streamed.tokens.batch(rows), wanted[rows], rtol=1e-5, atol=1e-6)
    seen = []
    for chosen, tokens in streamed.tokens.epochs(torch.arange(len(valid)), 16, 1, seed=0):
        torch.testing.assert_close(tokens, wanted[chosen], rtol=1e-5, atol=1e-6)
        seen.append(chosen)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(len(valid)))


def test_a_dataset_of_torch_hands_out_the_decoded_values(cache_and_values):
    cache, _, values, _ = cache_and_values
    samples = CachedSamples(cache["train"], "last", "ap+cls")
    loaded = torch.cat([x for x, _ in DataLoader(samples, batch_size=64, num_workers=1)])
    wanted = values["train"]["final"][:, :, ::-1][np.setdiff1d(np.arange(300), SKIPPED)].astype(np.float16)
    assert torch.equal(loaded, torch.from_numpy(wanted))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_kernels_agree_bit_for_bit(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    codes = rng.integers(-128, 128, (rows, width), np.int8)
    # As `RangeFit` makes them: scales of 16 significant bits.
    ranges = RangeFit(_array(width))
    low = data.draw(
        st.integers(-12, 4)
    )  # no floats: in a process that flushes denormals hypothesis refuses them
    ranges.add(
        (rng.standard_normal((9, 1, 1, width)) * 10.0 ** rng.uniform(low, 4, width)).astype(np.float32)
    )
    scales = ranges.scales()
    for dtype in (np.float16, np.float32):
        outs = [np.empty(codes.shape, dtype) for _ in range(2)]
        scratch = np.empty(codes.shape, np.float32)
        with np.errstate(over="ignore"):
            for kernel, out in zip((numpy_kernel, torch_kernel), outs, strict=True):
                kernel(codes, scales.scale.ravel(), scales.offset.ravel(), out, scratch)
        assert outs[0].tobytes() == outs[1].tobytes()


def _array(width):
    from featcache.store.arrays import ArrayInfo

    return ArrayInfo("norm2", (9, 1, 1, width), 128, "int8", ("a",) * 4, ("0",), ("cls",))
